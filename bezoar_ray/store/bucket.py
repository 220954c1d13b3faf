"""A run directory in a bucket, through obstore: whole objects, and a lock by conditional writes.

Credentials, region and endpoint come from the environment, by the names that AWS, Google and Azure give them.
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
from bezoar_ray.store.lock_owner import alive, died, in_use, me

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import ObjectMeta, PutMode, UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

_RETRIES: "RetryConfig" = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
_CLIENT: "ClientConfig" = {
    "timeout": "60s",
    "connect_timeout": "10s",
    "allow_http": True,
}  # of one attempt; http as the endpoint has it
_CUTS = 6  # answers that may break off before an operation fails
_READ_AHEAD = 2**18  # bytes
_RENEWED = 5.0  # seconds between two signs of life of a lock's holder
_STALE = 45.0  # without one, the lock is another's to take


class Bucket(Backend):
    """Objects below a URL."""

    root: str

    def __init__(self, url: str):
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self.root = url.rstrip("/")
        try:
            if url.partition("://")[0] not in ("s3", "gs"):
                raise ValueError("no other kind of address is known")
            self._store = from_url(
                self.root, client_options=_CLIENT, retry_config=_RETRIES
            )
        except (BaseError, ValueError) as error:
            raise RecipeError(
                f"--run-dir {url}: not a folder, s3:// or gs:// address: {_first_line(error)}"
            ) from error
        self._copies = Copies(self.root, self._fetch)

    def here(self, name: str) -> Path:
        """The place of a file of this node's own."""
        return self._copies.folder / self._checked(name)

    def path(self, name: str) -> Path:
        """A copy as of now: objects that have not changed since an earlier one are not read again."""
        return self._copies.get(name, self._objects(name)) / self._checked(name)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """In a temporary folder first."""
        import obstore

        with tempfile.TemporaryDirectory(prefix="bezoar_ray-") as folder:
            path = Path(folder) / self._checked(name)
            yield path
            for file in (p for p in sorted(Path(folder).rglob("*")) if p.is_file()):
                with self._writing(name):
                    obstore.put(self._store, str(file.relative_to(folder)), file)

    def exists(self, name: str) -> bool:
        """Whether there is such an object, or any below such a prefix."""
        return bool(self._objects(name, first=True))

    def list(self, prefix: str) -> Iterator[str]:
        """All objects below a prefix."""
        names = (found["path"] for found in self._objects(prefix))
        return (
            name
            for name in names
            if name != prefix and not PurePosixPath(name).name.startswith(".")
        )

    def read(self, name: str) -> bytes:
        """The bytes of an object. Raises `FileNotFoundError` where there is none."""
        import obstore

        with self._reading(name):
            return _patiently(
                lambda: obstore.get(self._store, self._checked(name)).bytes().to_bytes()
            )

    def replace(self, name: str, data: bytes) -> None:
        """One PUT."""
        import obstore

        with self._writing(name):
            obstore.put(self._store, self._checked(name), data, use_multipart=False)

    def remove(self, prefix: str) -> None:
        """An object, or all below a prefix."""
        while names := [found["path"] for found in self._objects(prefix)]:
            # Google answers 404 where one is gone: by another process, or by an attempt whose answer was lost.
            with self._writing(prefix), contextlib.suppress(FileNotFoundError):
                return self._delete(names)

    def adopt(self, other: Backend, name: str) -> None:
        """Through this process: the two may lie in different buckets."""
        self.replace(name, other.read(name))

    def open(self, name: str) -> pa.NativeFile:
        """Reads the parts that are asked for."""
        return pa.PythonFile(
            io.BufferedReader(_Ranges(self, self._checked(name)), _READ_AHEAD), mode="r"
        )

    def part(self, name: str, start: int, length: int) -> bytes:
        """Some bytes of an object."""
        import obstore

        if length <= 0:
            return b""
        with self._reading(name):
            return _patiently(
                lambda: obstore.get_range(
                    self._store, name, start=start, length=length
                ).to_bytes()
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """An object that its holder renews; one whose holder has fallen silent is taken over."""
        lock = _Lock(self)
        lock.take()
        over = threading.Event()
        renewing = threading.Thread(target=lock.renew_until, args=(over,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            if lock.is_held():  # else it is another's by now
                self.remove(lock.NAME)

    def put(
        self, name: str, data: bytes, replaces: "UpdateVersion | None"
    ) -> "UpdateVersion":
        """A conditional PUT: only where there is none yet, or in place of just this version. Returns its own.

        Raises:
            FileExistsError: the condition does not hold.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self._writing(name):
                put = obstore.put(
                    self._store, name, data, mode=_mode(replaces), use_multipart=False
                )
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(name) from error
        return {"e_tag": put["e_tag"], "version": put["version"]}

    def head(self, name: str) -> "ObjectMeta":
        """Tag, version, size and time of an object."""
        import obstore

        with self._reading(name):
            return obstore.head(self._store, name)

    def _checked(self, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise RecipeError(f"{name!r} lies outside the run directory {self.root}")
        return "" if path == PurePosixPath() else str(path)

    def _objects(self, name: str, first: bool = False) -> Entries:
        """The object of a name, or those below it as a prefix."""
        import obstore

        name = self._checked(name)
        with self._reading(name):
            try:
                return [obstore.head(self._store, name)]
            except (
                FileNotFoundError,
                ValueError,
            ):  # no such object, or no name: all of them
                return _patiently(lambda: self._below(name, first))

    def _below(self, name: str, first: bool) -> Entries:
        import obstore

        batches = obstore.list(
            self._store, prefix=name, chunk_size=1 if first else 1000
        )
        return (
            next(iter(batches), [])
            if first
            else [found for batch in batches for found in batch]
        )

    def _delete(self, names: Sequence[str]) -> None:
        import obstore

        _patiently(lambda: obstore.delete(self._store, names))

    def _fetch(self, name: str, file: Path) -> None:
        """All of an object, into a file."""
        with self._reading(name):
            _patiently(lambda: self._download(name, file))

    def _download(self, name: str, file: Path) -> None:
        import obstore

        with open(file, "wb") as sink:
            for chunk in obstore.get(self._store, name).stream():
                sink.write(chunk)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """The provider's faults as ours, but for an object that is not there."""
        with self._faults(f"cannot read {self.root}/{name}", FileNotFoundError):
            yield

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """The provider's faults as ours, but for a condition that does not hold."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._faults(
            f"cannot write {self.root}/{name}", AlreadyExistsError, PreconditionError
        ):
            yield

    @contextlib.contextmanager
    def _faults(self, what: str, *expected: type[Exception]) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except expected:
            raise
        except (BaseError, OSError) as error:
            raise BezoarError(
                f"{what}: {_first_line(error)}. Check credentials, region and endpoint in the environment, and that "
                "the bucket is there; run the same command again to go on"
            ) from error


class _Ranges(io.RawIOBase):
    """An object of which the parts are read that are asked for."""

    def __init__(self, bucket: Bucket, name: str):
        self._bucket, self._name, self._size, self._at = (
            bucket,
            name,
            bucket.head(name)["size"],
            0,
        )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = (
            offset
            + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        )
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        part = self._bucket.part(
            self._name, self._at, min(len(view), self._size - self._at)
        )
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


class _Lock:
    """Who holds a run directory in a bucket: one object, renewed while its holder lives."""

    NAME = "lock"

    def __init__(self, bucket: Bucket):
        self._bucket, self._sign = (
            bucket,
            orjson.dumps({"id": uuid.uuid4().hex, "holder": me(), **alive()}),
        )
        self._version: UpdateVersion = {}

    def take(self) -> None:
        """Raises `RunLocked` where a living process holds it."""
        try:
            self._version = self._bucket.put(self.NAME, self._sign, None)
            return
        except FileExistsError:
            try:
                there, version = self._bucket.read(self.NAME), self._now()
            except FileNotFoundError:  # its holder has just ended
                return self.take()
        if there != self._sign:  # else an attempt whose answer was lost has made it
            holder = orjson.loads(there)
            if not self._silent() and not died(holder):
                raise RunLocked(in_use(self._bucket.root, holder["holder"]))
        try:
            self._version = self._bucket.put(self.NAME, self._sign, version)
        except FileExistsError:
            raise RunLocked(
                in_use(self._bucket.root, "a process that has just taken it over")
            ) from None

    def renew_until(self, over: threading.Event) -> None:
        """Show signs of life. Where another process has taken the lock over meanwhile, this one ends."""
        while not over.wait(_RENEWED):
            with contextlib.suppress(
                BezoarError, FileNotFoundError
            ):  # an outage; until it ends, the lock may be lost
                self._renew()

    def is_held(self) -> bool:
        """Whether it is this process's."""
        try:
            return self._bucket.read(self.NAME) == self._sign
        except FileNotFoundError:
            return False

    def _renew(self) -> None:
        try:
            self._version = self._bucket.put(self.NAME, self._sign, self._version)
        except FileExistsError:
            if not self.is_held():
                print(
                    f"bezoar: {self._bucket.root} was taken over by another command; this one ends",
                    flush=True,
                )
                os._exit(3)
            self._version = self._now()

    def _now(self) -> "UpdateVersion":
        found = self._bucket.head(self.NAME)
        return {"e_tag": found["e_tag"], "version": found["version"]}

    def _silent(self) -> bool:
        """Whether its holder has shown no sign of life for long, by the provider's clock."""
        probe = f".probe-{uuid.uuid4().hex}"
        self._bucket.replace(probe, b"")
        now = self._bucket.head(probe)["last_modified"]
        self._bucket.remove(probe)
        return (
            now - self._bucket.head(self.NAME)["last_modified"]
        ).total_seconds() > _STALE


def _mode(replaces: "UpdateVersion | None") -> "PutMode":
    """Under which condition an object is put: of a version, what its provider tells of it."""
    if replaces is None:
        return "create"
    known: UpdateVersion = {}
    if tag := replaces.get("e_tag"):
        known["e_tag"] = tag
    if version := replaces.get("version"):
        known["version"] = version
    return known


def _patiently(action: Callable[[], T]) -> T:
    """What changes nothing where it is done again: the client does not by itself where an answer was cut off."""
    from obstore.exceptions import GenericError

    for attempt in range(_CUTS - 1):
        try:
            return action()
        except GenericError:
            time.sleep(0.1 * 2**attempt)
    return action()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
