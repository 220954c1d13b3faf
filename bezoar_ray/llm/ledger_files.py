"""The segments of a ledger: one series of lines per writer, durable as soon as `append` returns.

In a folder a segment is one file that grows. In a bucket it is a series of objects: each flush puts the last one anew,
whole, until it is large enough; a copy on the writer's own disk is what is read again.
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

_OBJECT = 2**20  # bytes from which on a further object is begun
_GATHER = {"s3": 0.25, "gs": 1.1}
"""Seconds between two PUTs of a writer: providers take some $5 for a million of them, and Google takes one of an object
in a second (cloud.google.com/storage/quotas)."""


class Segment(Protocol):
    """Lines that one process appends."""

    reader: BinaryIO
    pause: float
    """Seconds in which lines should gather between two appends."""

    def append(self, data: bytes) -> int:
        """Write all of it, durably, or nothing: half a line would join with the next. The offset of what was written.

        Raises:
            BezoarError: it cannot be written; the message says why.
        """
        ...

    def close(self) -> None:
        """End the segment."""
        ...


def own(store: Store, name: str) -> Segment:
    """A new segment; `name` has no suffix."""
    return ObjectSegment(store, name) if store.remote else FileSegment(store, name)


def earlier(store: Store, folder: str) -> Iterator[tuple[str, BinaryIO]]:
    """The segments of a folder that are there, each with its writer's name, in the order of these."""
    files = sorted(store.path(folder).glob("*.jsonl"))
    for writer, series in groupby(files, key=lambda file: file.name.partition(".")[0]):
        first, *rest = series
        if not rest:
            yield writer, open(first, "rb")
            continue
        whole = tempfile.TemporaryFile(prefix="bezoar_ray-")
        for file in (first, *rest):
            with open(file, "rb") as part:
                shutil.copyfileobj(part, whole)
        whole.seek(0)
        yield writer, whole


def entries(file: BinaryIO) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a segment and what they say. One without its end is what a crash tore."""
    for line in file:
        if line.endswith(b"\n"):
            yield line, orjson.loads(line)


class FileSegment(Segment):
    """A file that grows, with an fsync for each append."""

    pause = 0.0

    def __init__(self, store: Store, name: str):
        path = store.path(f"{name}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)
        self.reader = open(path, "rb")

    def append(self, data: bytes) -> int:
        file, left, size = self._file.fileno(), memoryview(data), None
        try:
            size = os.fstat(file).st_size
            while left:
                left = left[self._file.write(left) :]
            os.fsync(file)
            return size
        except OSError as error:
            if size is not None:
                with contextlib.suppress(
                    OSError
                ):  # the first fault is the one to tell; nobody may wait for ever
                    os.ftruncate(file, size)
            raise BezoarError(
                f"cannot write {self._file.name}: {error.strerror}. Free space; run the same command again to go on"
            ) from error

    def close(self) -> None:
        self._file.close()
        self.reader.close()


class ObjectSegment(Segment):
    """Objects of about a megabyte, of which the last is put anew with each append."""

    def __init__(self, store: Store, name: str):
        self._store, self._name, self._number, self._last = store, name, 0, b""
        self.pause = _GATHER[str(store.root).partition("://")[0]]
        self._copy = tempfile.NamedTemporaryFile(prefix="bezoar_ray-", suffix=".jsonl")
        self.reader = open(self._copy.name, "rb")

    def append(self, data: bytes) -> int:
        whole = self._last + data
        self._store.replace(f"{self._name}.{self._number:06}.jsonl", whole)
        self._last = whole
        if len(whole) >= _OBJECT:
            self._number, self._last = self._number + 1, b""
        offset = self._copy.tell()
        self._copy.write(data)
        self._copy.flush()
        return offset

    def close(self) -> None:
        self._copy.close()
        self.reader.close()
