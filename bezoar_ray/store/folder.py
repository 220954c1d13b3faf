"""A run directory that is a folder."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from bezoar_ray.errors import BezoarError, RecipeError, RunLocked
from bezoar_ray.store.backend import Backend
from bezoar_ray.store.lock_owner import in_use, me


class Folder(Backend):
    """Files below a folder."""

    root: Path

    def __init__(self, root: Path):
        self.root = root

    def path(self, name: str) -> Path:
        """The path of a file or folder. Names cannot leave the directory; what is linked into it belongs to it."""
        path = Path(os.path.normpath(self.root.absolute() / name))
        if not path.is_relative_to(os.path.normpath(self.root.absolute())):
            raise RecipeError(f"{name!r} lies outside the run directory {self.root}")
        return path

    def here(self, name: str) -> Path:
        """In the run directory."""
        return self.path(name)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Written in place: what counts is said by manifests."""
        yield self.path(name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return self.path(name).exists()

    def list(self, prefix: str) -> Iterator[str]:
        """All files below a folder. Others may remove some meanwhile, as Ray Train does with old checkpoints."""
        root, walk = (
            self.path(""),
            os.walk(self.path(prefix), onerror=_unless_gone, followlinks=True),
        )
        found = (Path(folder, name) for folder, _, names in walk for name in names)
        return (
            str(path.relative_to(root))
            for path in found
            if not path.name.startswith(".")
        )

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `FileNotFoundError` where there is none."""
        path = self.path(name)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(name) from error
        except OSError as error:
            raise BezoarError(f"cannot read {path}: {error.strerror}") from error

    def replace(self, name: str, data: bytes) -> None:
        """Durable, and visible at once."""
        path = self.path(name)
        partial = path.with_name(
            f".{path.name}.{uuid.uuid4().hex[:8]}"
        )  # on NFS, other hosts write, too
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise BezoarError(
                f"cannot write {path}: {error.strerror}. Free space, or choose another --run-dir."
            ) from error

    def remove(self, prefix: str) -> None:
        """A file or folder. What is left of it would count as new, so nothing goes on where it cannot be removed."""
        path = self.path(prefix)
        try:
            shutil.rmtree(
                path
            ) if path.is_dir() and not path.is_symlink() else path.unlink(
                missing_ok=True
            )
        except FileNotFoundError:  # another process was quicker
            shutil.rmtree(path, ignore_errors=True)
        except NotADirectoryError:  # a part of its path is a file: there is none
            return
        except OSError as error:
            raise BezoarError(
                f"cannot remove {error.filename or path}: {error.strerror}. Remove it by hand"
            ) from error

    def adopt(self, other: Backend, name: str) -> None:
        """By a link, or a copy where they lie on different disks."""
        mine, theirs = self.path(name), other.path(name)
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.unlink(missing_ok=True)
        try:
            os.link(theirs, mine)
        except (
            OSError
        ):  # to a name of its own first: a file that was linked meanwhile is shared
            partial = mine.with_name(f".{mine.name}.{uuid.uuid4().hex[:8]}")
            shutil.copyfile(theirs, partial)
            os.replace(partial, mine)

    def open(self, name: str) -> pa.NativeFile:
        """Memory-mapped."""
        return pa.memory_map(str(self.path(name)))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held until the process ends, at the latest."""
        with open(self.path("lock"), "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RunLocked(in_use(self.root, file.read().strip())) from None
            except OSError as error:
                raise RecipeError(
                    f"cannot lock {self.path('lock')}: {error.strerror}. Two commands in one run directory would pay "
                    "twice, so choose a --run-dir on a file system that has locks"
                ) from error
            file.truncate(0)
            file.write(me())
            file.flush()
            yield


def _sync(folder: Path) -> None:
    """A name is durable once its folder is, as far as the file system knows of that."""
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise BezoarError(f"cannot list {error.filename}: {error.strerror}") from error
