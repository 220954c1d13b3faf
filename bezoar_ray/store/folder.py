"""A run directory that is a folder, local or on a network file system."""

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
from bezoar_ray.store.lock_owner import describe_this_process, in_use_message


class Folder(Backend):
    """Files below a folder."""

    root: Path

    def __init__(self, root: Path):
        self.root = root

    def path(self, name: str) -> Path:
        """The path of a file or folder.

        A symbolic link in the run directory may lead out of it; a name may not.
        """
        root = self.root.absolute()
        path = Path(os.path.normpath(root / name))
        if not path.is_relative_to(os.path.normpath(root)):
            raise RecipeError(f"{name!r} is outside the run directory {self.root}")
        return path

    def here(self, name: str) -> Path:
        """A path in the run directory."""
        return self.path(name)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """The final path: an unfinished file does no harm, as no manifest lists it."""
        yield self.path(name)

    def exists(self, name: str) -> bool:
        """Whether a file or folder exists."""
        return self.path(name).exists()

    def list(self, prefix: str) -> Iterator[str]:
        """The names of all files below a folder.

        Other processes may remove some meanwhile, as Ray Train does with old
        checkpoints.
        """
        root = self.path("")
        # A folder of the run directory may be a link to another disk.
        walk = os.walk(self.path(prefix), onerror=_raise_unless_gone, followlinks=True)
        for folder, _, names in walk:
            for name in names:
                # Unfinished files of `replace` begin with a dot.
                if not name.startswith("."):
                    yield str(Path(folder, name).relative_to(root))

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        path = self.path(name)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(name) from error
        except OSError as error:
            raise BezoarError(f"cannot read {path}: {error.strerror}") from error

    def replace(self, name: str, data: bytes) -> None:
        """Write a hidden file beside the old one, and rename it."""
        path = self.path(name)
        # On NFS processes of several hosts write here, so a process id would not do.
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                # Before the rename, which could be durable first
                # and leave an empty file.
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise BezoarError(
                f"cannot write {path}: {error.strerror}. Free space, or choose another "
                "--run-dir."
            ) from error

    def remove(self, prefix: str) -> None:
        """Remove a file or folder if it exists.

        Raises:
            BezoarError: it cannot be removed. What is left of it would count as new.
        """
        path = self.path(prefix)
        try:
            # A link is removed itself, and not what it leads to.
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            # Another process removed some of it first.
            shutil.rmtree(path, ignore_errors=True)
        except NotADirectoryError:
            # A parent of the path is a file, so the path does not exist.
            return
        except OSError as error:
            raise BezoarError(
                f"cannot remove {error.filename or path}: {error.strerror}. "
                "Remove it by hand"
            ) from error

    def adopt(self, other: Backend, name: str) -> None:
        """Link a file of another run directory, or copy it from another disk."""
        source = other.path(name)
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            # Not copied to `target` itself: another process may have linked a file there,
            # and the copy would write into a file that two run directories share.
            partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            shutil.copyfile(source, partial)
            os.replace(partial, target)

    def open(self, name: str) -> pa.NativeFile:
        """Open a file, memory-mapped."""
        return pa.memory_map(str(self.path(name)))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run directory for the block.

        The operating system frees the lock when the process ends, however it ends.
        """
        path = self.path("lock")
        # Not "w", which would erase the owner's name before the
        # lock is known to be free.
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip()
                raise RunLocked(in_use_message(self.root, owner)) from None
            except OSError as error:
                raise RecipeError(
                    f"cannot lock {path}: {error.strerror}. Two commands in one run "
                    "directory would pay twice, so choose a --run-dir on a file system "
                    "that supports locks"
                ) from error
            file.truncate(0)
            file.write(describe_this_process())
            file.flush()
            yield


def _sync_folder(folder: Path) -> None:
    """Make a renamed file durable: its name is stored in the folder.

    Some file systems do not support this for folders; the error is ignored.
    """
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise BezoarError(f"cannot list {error.filename}: {error.strerror}") from error
