"""The segments of a ledger: one series of lines per writer, durable after `append`.

In a folder, a segment is one file that grows. In a bucket, it is a series of objects:
each append writes the last object again, whole, until it is large enough. A copy on the
writer's own disk is used for reading.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any, BinaryIO, Protocol

import orjson

from bezoar_ray.errors import BezoarError
from bezoar_ray.store import Store

_OBJECT_BYTES = 2**20  # an object of this size is full, and the next one begins
_PAUSE_IN_BUCKET = {"s3": 0.25, "gs": 1.1}
"""Seconds between two PUTs of a writer, by the scheme of the bucket's address.

Providers charge some $5 for a million PUTs, and Google takes one PUT per second of the
same object (cloud.google.com/storage/quotas)."""


class Segment(Protocol):
    """Lines that one process appends."""

    reader: BinaryIO
    pause: float
    """Seconds in which lines should gather between two appends."""

    def append(self, data: bytes) -> int:
        """Write all the data durably, or none of it, and return its offset.

        Half a line would be joined with the next one.

        Raises:
            BezoarError: The data cannot be written; the message says why.
        """
        ...

    def close(self) -> None:
        """End the segment."""
        ...


def create_segment(store: Store, name: str) -> Segment:
    """Create a segment for this process; `name` is its path without a suffix."""
    if store.remote:
        return ObjectSegment(store, name)
    return FileSegment(store, name)


def open_segments(store: Store, folder: str) -> Iterator[tuple[str, BinaryIO]]:
    """Open the segments of a folder, with their writers' names, sorted by these."""
    # Zero-padded numbers: the order of names is the order of a bucket's objects.
    paths = sorted(store.path(folder).glob("*.jsonl"))
    by_writer = groupby(paths, key=lambda path: path.name.partition(".")[0])
    for writer, series in by_writer:
        first, *others = series
        if not others:
            yield writer, open(first, "rb")
            continue
        # One offset in the whole segment then finds an answer, as in a file. An unnamed
        # file vanishes with the process.
        joined = tempfile.TemporaryFile(prefix="bezoar_ray-")
        for path in (first, *others):
            with open(path, "rb") as file:
                shutil.copyfileobj(file, joined)
        joined.seek(0)
        yield writer, joined


def entries(file: BinaryIO) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Read the lines of a segment with their entries.

    A line without its end was torn by a crash and is left out.
    """
    for line in file:
        if line.endswith(b"\n"):
            yield line, orjson.loads(line)


class FileSegment(Segment):
    """A file that grows, with an fsync for each append."""

    pause = 0.0

    def __init__(self, store: Store, name: str):
        path = store.path(f"{name}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: fsync does not see what Python still holds.
        self._file = open(path, "ab", buffering=0)
        self.reader = open(path, "rb")

    def append(self, data: bytes) -> int:
        descriptor = self._file.fileno()
        unwritten = memoryview(data)
        size = None
        try:
            # A writer's own file: nothing else appends, so its size is the offset.
            size = os.fstat(descriptor).st_size
            while unwritten:
                # A raw write may take a part only, as on a disk that is almost full.
                written = self._file.write(unwritten)
                unwritten = unwritten[written:]
            os.fsync(descriptor)
            return size
        except OSError as error:
            if size is not None:
                # If this fails, too, the first fault is the one to report. The calls
                # that wait for this append must learn of it.
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
            raise BezoarError(
                f"cannot write {self._file.name}: {error.strerror}. Free space, and "
                "run the same command again to resume"
            ) from error

    def close(self) -> None:
        self._file.close()
        self.reader.close()


class ObjectSegment(Segment):
    """Objects of about a megabyte; each append writes the last one again."""

    def __init__(self, store: Store, name: str):
        self._store = store
        self._name = name
        self._number = 0
        self._last_object = b""
        scheme = str(store.root).partition("://")[0]
        # Each PUT is billed, and an object is written whole: gather lines in between.
        self.pause = _PAUSE_IN_BUCKET[scheme]
        # Answers of this session are read back from here, not by a GET for each.
        self._copy = tempfile.NamedTemporaryFile(prefix="bezoar_ray-", suffix=".jsonl")
        self.reader = open(self._copy.name, "rb")

    def append(self, data: bytes) -> int:
        whole_object = self._last_object + data
        path = f"{self._name}.{self._number:06}.jsonl"
        # The copy comes after the PUT: an answer that `find` can read must be durable.
        self._store.replace(path, whole_object)
        self._last_object = whole_object
        # A full object is never written again, which bounds the bytes of each PUT.
        if len(whole_object) >= _OBJECT_BYTES:
            self._number += 1
            self._last_object = b""
        offset = self._copy.tell()
        self._copy.write(data)
        self._copy.flush()
        return offset

    def close(self) -> None:
        self._copy.close()
        self.reader.close()
