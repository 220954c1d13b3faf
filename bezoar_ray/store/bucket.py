"""A run directory in a bucket, through obstore: whole objects, and a lock.

Credentials, region and endpoint come from the environment, under the names that AWS and
Google give them.
"""

import contextlib
import io
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import orjson
import pyarrow as pa

from bezoar_ray.errors import BezoarError, RecipeError, RunLocked
from bezoar_ray.store.backend import Backend
from bezoar_ray.store.copies import Copies, Entries
from bezoar_ray.store.lock_owner import (
    describe_this_process,
    has_died,
    in_use_message,
    this_process,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import ObjectMeta, PutMode, UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

_RETRIES: "RetryConfig" = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
# Timeouts are those of one attempt. HTTP is used only where the endpoint's URL says so.
_CLIENT: "ClientConfig" = {
    "timeout": "60s",
    "connect_timeout": "10s",
    "allow_http": True,
}
_ATTEMPTS = 6
"""Attempts at an operation whose response was cut off."""
_READ_AHEAD = 2**18
"""Bytes that are fetched at a time from an open object."""
_RENEW_INTERVAL = 5.0
"""Seconds after which a process renews its lock."""
_STALE_AFTER = 45.0
"""Seconds without renewal after which another process may take over a lock."""


class Bucket(Backend):
    """Objects below a URL."""

    root: str

    def __init__(self, url: str):
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self.root = url.rstrip("/")
        try:
            if url.partition("://")[0] not in ("s3", "gs"):
                raise ValueError("unknown kind of address")
            self._store = from_url(
                self.root, client_options=_CLIENT, retry_config=_RETRIES
            )
        except (BaseError, ValueError) as error:
            raise RecipeError(
                f"--run-dir {url}: not a folder, s3:// or gs:// address: "
                f"{_first_line(error)}"
            ) from error
        self._copies = Copies(self.root, self._fetch)

    def here(self, name: str) -> Path:
        """A path on this node's disk."""
        return self._copies.folder / self._check_name(name)

    def path(self, name: str) -> Path:
        """The path of a copy as of now.

        Objects that have not changed since an earlier copy are not downloaded again.
        """
        copy = self._copies.get(name, self._objects(name))
        return copy / self._check_name(name)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path in a temporary folder, which is uploaded after the block."""
        import obstore

        with tempfile.TemporaryDirectory(prefix="bezoar_ray-") as folder:
            path = Path(folder) / self._check_name(name)
            yield path
            files = [file for file in Path(folder).rglob("*") if file.is_file()]
            for file in sorted(files):
                object_name = str(file.relative_to(folder))
                with self._write_errors(name):
                    obstore.put(self._store, object_name, file)

    def exists(self, name: str) -> bool:
        """Whether there is such an object, or any object below such a prefix."""
        return bool(self._objects(name, first_only=True))

    def list(self, prefix: str) -> Iterator[str]:
        """The names of all objects below a prefix."""
        for entry in self._objects(prefix):
            name = entry["path"]
            is_hidden = PurePosixPath(name).name.startswith(".")
            if name != prefix and not is_hidden:
                yield name

    def read(self, name: str) -> bytes:
        """The bytes of an object."""
        import obstore

        def get() -> bytes:
            response = obstore.get(self._store, self._check_name(name))
            return response.bytes().to_bytes()

        with self._read_errors(name):
            return _retry(get)

    def replace(self, name: str, data: bytes) -> None:
        """Write an object by one PUT, which providers make visible at once."""
        import obstore

        with self._write_errors(name):
            obstore.put(self._store, self._check_name(name), data, use_multipart=False)

    def remove(self, prefix: str) -> None:
        """Remove an object, or all objects below a prefix."""
        while True:
            names = [entry["path"] for entry in self._objects(prefix)]
            if not names:
                return
            with self._write_errors(prefix):
                try:
                    return self._delete(names)
                except FileNotFoundError:
                    # Google answers 404 where one object is gone: removed by another
                    # process, or by an attempt whose response was lost. The others are
                    # still there.
                    continue

    def adopt(self, other: Backend, name: str) -> None:
        """Copy an object through this process: the two buckets may differ."""
        self.replace(name, other.read(name))

    def open(self, name: str) -> pa.NativeFile:
        """Open an object. Only the ranges that are read are downloaded."""
        ranges = _RangeReader(self, self._check_name(name))
        # pyarrow reads in small pieces, of which each would be a request.
        return pa.PythonFile(io.BufferedReader(ranges, _READ_AHEAD), mode="r")

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Some bytes of an object."""
        import obstore

        if length <= 0:
            return b""

        def get() -> bytes:
            data = obstore.get_range(self._store, name, start=start, length=length)
            return data.to_bytes()

        with self._read_errors(name):
            return _retry(get)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run directory for the block, with an object that a thread renews.

        A lock that is no longer renewed is taken over by the next process.
        """
        lock = _Lock(self)
        lock.acquire()
        stop = threading.Event()
        renewal = threading.Thread(target=lock.renew_until, args=(stop,), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            # The thread ends first: it could write the lock again after its removal.
            stop.set()
            renewal.join()
            if lock.is_owned():  # Otherwise another process has taken it over.
                self.remove(lock.NAME)

    def put_if(
        self, name: str, data: bytes, replaces: "UpdateVersion | None"
    ) -> "UpdateVersion":
        """Write an object under a condition (a conditional PUT).

        Args:
            name: the object's name.
            data: its bytes.
            replaces: the version that the object must have now; None if it must not
                exist.

        Returns:
            The version of the new object.

        Raises:
            FileExistsError: the condition does not hold.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode = _put_mode(replaces)
        try:
            with self._write_errors(name):
                result = obstore.put(
                    self._store, name, data, mode=mode, use_multipart=False
                )
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(name) from error
        return {"e_tag": result["e_tag"], "version": result["version"]}

    def head(self, name: str) -> "ObjectMeta":
        """Tag, version, size and time of an object."""
        import obstore

        with self._read_errors(name):
            return obstore.head(self._store, name)

    def _check_name(self, name: str) -> str:
        """The name of an object, which must be below the root."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise RecipeError(f"{name!r} is outside the run directory {self.root}")
        return "" if path == PurePosixPath() else str(path)

    def _objects(self, name: str, first_only: bool = False) -> Entries:
        """The object of a name, or the objects below it as a prefix."""
        import obstore

        name = self._check_name(name)
        with self._read_errors(name):
            try:
                return [obstore.head(self._store, name)]
            except (FileNotFoundError, ValueError):
                # There is no such object; ValueError is obstore's for an empty name.
                return _retry(lambda: self._objects_below(name, first_only))

    def _objects_below(self, prefix: str, first_only: bool) -> Entries:
        import obstore

        chunk_size = 1 if first_only else 1000
        entries: list[ObjectMeta] = []
        for chunk in obstore.list(self._store, prefix=prefix, chunk_size=chunk_size):
            entries.extend(chunk)
            if first_only:
                break
        return entries

    def _delete(self, names: Sequence[str]) -> None:
        import obstore

        _retry(lambda: obstore.delete(self._store, names))

    def _fetch(self, name: str, file: Path) -> None:
        """Download an object into a file."""
        with self._read_errors(name):
            _retry(lambda: self._download(name, file))

    def _download(self, name: str, file: Path) -> None:
        import obstore

        with open(file, "wb") as sink:
            for chunk in obstore.get(self._store, name).stream():
                sink.write(chunk)

    @contextlib.contextmanager
    def _read_errors(self, name: str) -> Iterator[None]:
        """Turn the provider's errors into ours, except for a missing object."""
        with self._errors(f"cannot read {self.root}/{name}", FileNotFoundError):
            yield

    @contextlib.contextmanager
    def _write_errors(self, name: str) -> Iterator[None]:
        """Turn the provider's errors into ours, except for a condition of `put_if`."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._errors(
            f"cannot write {self.root}/{name}", AlreadyExistsError, PreconditionError
        ):
            yield

    @contextlib.contextmanager
    def _errors(self, failure: str, *expected: type[Exception]) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except expected:
            raise
        except (BaseError, OSError) as error:
            raise BezoarError(
                f"{failure}: {_first_line(error)}. Check credentials, region and "
                "endpoint in the environment, and that the bucket exists; run the same command "
                "again to resume"
            ) from error


class _RangeReader(io.RawIOBase):
    """A file object that downloads only the ranges that are read."""

    def __init__(self, bucket: Bucket, name: str):
        self._bucket = bucket
        self._name = name
        self._size = bucket.head(name)["size"]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._position,
            io.SEEK_END: self._size,
        }
        self._position = origins[whence] + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        length = min(len(view), self._size - self._position)
        data = self._bucket.read_range(self._name, self._position, length)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class _Lock:
    """The lock of a run directory in a bucket.

    It is one object, written by conditional PUTs, so that one of two processes wins.
    Its owner renews it, which tells other hosts that the owner is alive.
    """

    NAME = "lock"

    def __init__(self, bucket: Bucket):
        self._bucket = bucket
        owner = {
            "id": uuid.uuid4().hex,
            "holder": describe_this_process(),
            **this_process(),
        }
        self._content = orjson.dumps(owner)
        self._version: UpdateVersion = {}

    def acquire(self) -> None:
        """Take the lock, or take it over from a process that has died.

        Raises:
            RunLocked: a living process owns it.
        """
        try:
            self._version = self._bucket.put_if(self.NAME, self._content, None)
            return
        except FileExistsError:
            try:
                content = self._bucket.read(self.NAME)
                version = self._current_version()
            except FileNotFoundError:  # Its owner has just ended.
                return self.acquire()
        # The lock is ours already if the response to an earlier attempt was lost.
        if content != self._content:
            owner = orjson.loads(content)
            if not self._is_stale() and not has_died(owner):
                raise RunLocked(in_use_message(self._bucket.root, owner["holder"]))
        try:
            self._version = self._bucket.put_if(self.NAME, self._content, version)
        except FileExistsError:
            winner = "a process that has just taken it over"
            raise RunLocked(in_use_message(self._bucket.root, winner)) from None

    def renew_until(self, stop: threading.Event) -> None:
        """Renew the lock at intervals, and end this process if it has lost the lock."""
        while not stop.wait(_RENEW_INTERVAL):
            # During an outage renewal fails. After it, `_renew` sees who owns the lock.
            with contextlib.suppress(BezoarError, FileNotFoundError):
                self._renew()

    def is_owned(self) -> bool:
        """Whether this process owns the lock."""
        try:
            return self._bucket.read(self.NAME) == self._content
        except FileNotFoundError:
            return False

    def _renew(self) -> None:
        try:
            self._version = self._bucket.put_if(self.NAME, self._content, self._version)
        except FileExistsError:
            if not self.is_owned():
                # Not an exception: it would end this thread, and the main thread would
                # continue to write.
                print(
                    f"bezoar: {self._bucket.root} was taken over by another command; "
                    "this one ends",
                    flush=True,
                )
                os._exit(3)
            # The PUT of an attempt whose response was lost: it is
            # ours, with a new version.
            self._version = self._current_version()

    def _current_version(self) -> "UpdateVersion":
        entry = self._bucket.head(self.NAME)
        return {"e_tag": entry["e_tag"], "version": entry["version"]}

    def _is_stale(self) -> bool:
        """Whether the lock was not renewed for long.

        The provider's clock decides, for which a probe is written: clocks of hosts
        differ.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        self._bucket.replace(probe, b"")
        now = self._bucket.head(probe)["last_modified"]
        self._bucket.remove(probe)
        renewed = self._bucket.head(self.NAME)["last_modified"]
        return (now - renewed).total_seconds() > _STALE_AFTER


def _put_mode(replaces: "UpdateVersion | None") -> "PutMode":
    """The condition of a PUT: that there is no object, or one of this version."""
    if replaces is None:
        return "create"
    # Providers identify a version by a tag, a number or both. Others are null.
    version: UpdateVersion = {}
    if replaces.get("e_tag"):
        version["e_tag"] = replaces["e_tag"]
    if replaces.get("version"):
        version["version"] = replaces["version"]
    return version


def _retry(action: Callable[[], T]) -> T:
    """Repeat an action whose response was cut off, which obstore does not by itself.

    The action must have the same result when it is repeated.
    """
    from obstore.exceptions import GenericError

    for attempt in range(_ATTEMPTS - 1):
        try:
            return action()
        except GenericError:
            time.sleep(0.1 * 2**attempt)
    return action()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    first_line = lines[0] if lines else type(error).__name__
    return first_line[:300]
