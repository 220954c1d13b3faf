"""A node's copies of a bucket's objects, which all its processes share.

For each run directory, `objects` holds the bytes of each object once. `copies` holds
the folders whose paths are handed out; their files are hard links to `objects`. Above a
limit of size, the copies that were used least recently are deleted.

A process locks each copy that it has the path of, so that no other process deletes a
file that an engine opens later. It unlocks a copy when it ends, however it ends, or
when it requests the same name again and the objects have changed.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bezoar_ray.errors import RecipeError

if TYPE_CHECKING:
    from obstore import ObjectMeta

Entries = Sequence["ObjectMeta"]
"""Objects, each with its path, tag, version, size and time."""

LIMIT = "BEZOAR_COPIES_GIB"
"""Environment variable with the size limit of a node's copies. Half of the disk where
unset."""
_GRACE = 600.0
"""Seconds for which a copy is never deleted: its path may be on its way to another
process."""
_locked_copies: dict[tuple[Path, str], int] = {}
"""This process's handle of each locked copy, by run directory and name."""
_locked_copies_guard = threading.Lock()


class Copies:
    """The copies of one run directory's objects.

    Args:
        root: URL of the run directory.
        download: writes the object of a name to a file.

    Raises:
        RecipeError: the size limit is not a number of GiB, or the folder belongs to
            another user.
    """

    def __init__(self, root: str, download: Callable[[str, Path], None]):
        self.folder = user_folder() / fingerprint(root)
        self._download = download
        self._limit = _size_limit()

    def get(self, name: str, entries: Entries) -> Path:
        """The folder of a copy of some objects, which this process now locks.

        Args:
            name: file or folder of the run directory that the objects belong to.
            entries: the objects as they are now.
        """
        # A changed object has another tag, and so leads to another copy.
        versions = [f"{entry['path']} {entry['e_tag']}" for entry in entries]
        copy = self.folder / "copies" / fingerprint(*versions)
        is_new = False
        # In a loop: another process may delete the copy before this one locks it.
        while entries and not _lock_copy((self.folder, name), copy):
            self._make(entries, copy)
            is_new = True
        if is_new:
            _evict(self._limit)
        return copy

    def _make(self, entries: Entries, copy: Path) -> None:
        """Make a copy under a temporary name, and rename it.

        Several processes of a node may make the same copy at the same time.
        """
        objects = self.folder / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        # Shared by all that make copies; a deletion takes it alone.
        with _locked(objects, fcntl.LOCK_SH):
            partial = copy.with_name(f".{copy.name}.{uuid.uuid4().hex[:8]}")
            for entry in entries:
                target = partial / entry["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self._object(objects, entry), target)
            with contextlib.suppress(OSError):  # Another process was faster.
                partial.rename(copy)
            shutil.rmtree(partial, ignore_errors=True)

    def _object(self, objects: Path, entry: "ObjectMeta") -> Path:
        """The file with an object's bytes, which is downloaded once on each node."""
        file = objects / fingerprint(entry["path"], entry["e_tag"] or "")
        if file.exists():
            return file
        # The workers of a node request the same weights at once. One of them downloads.
        with open(file.with_name(f".{file.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                # Under the lock one name suffices, and what a killed
                # download left is overwritten.
                partial = file.with_name(f".{file.name}")
                self._download(entry["path"], partial)
                partial.rename(file)
        return file


def user_folder() -> Path:
    """This user's folder on this node's disk.

    Other users must not read rows there, or exchange weights.

    Raises:
        RecipeError: the folder belongs to another user.
    """
    folder = Path(tempfile.gettempdir()) / f"bezoar_ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # In /tmp, any user could have made a folder or a link of this name.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise RecipeError(
            f"{folder} belongs to another user. Remove it, or set TMPDIR to a folder "
            "of your own"
        )
    return folder


def fingerprint(*texts: str) -> str:
    """16 hex digits that identify some texts."""
    content = "\n".join(texts).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _size_limit() -> float:
    """The size limit of all copies on this node, in bytes."""
    text = os.environ.get(LIMIT)
    if text is None:
        return shutil.disk_usage(user_folder()).total / 2
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    if not gib >= 0:  # also for NaN
        raise RecipeError(
            f"{LIMIT}: {text!r} is not a number of GiB. Set a number, or unset the "
            "variable for half of the disk"
        )
    return gib * 2**30


def _lock_copy(key: tuple[Path, str], copy: Path) -> bool:
    """Lock a copy for this process, and unlock its earlier copy of the same name.

    Returns:
        False if there is no such copy.
    """
    try:
        handle = os.open(copy, os.O_RDONLY)
    except FileNotFoundError:
        return False
    fcntl.flock(handle, fcntl.LOCK_SH)
    if not _is_open_at(handle, copy):  # It was deleted before it was locked.
        os.close(handle)
        return False
    # The time of use, by which copies are chosen for deletion.
    os.utime(handle)
    with _locked_copies_guard:
        earlier_handle = _locked_copies.get(key)
        _locked_copies[key] = handle
    if earlier_handle is not None:
        os.close(earlier_handle)
    return True


def _evict(limit: float) -> None:
    """Delete copies, oldest use first, until all objects take no more than the limit.

    Copies in use stay, and so do those that were handed out a short time ago.
    """
    used_at = {}
    for copy in user_folder().glob("*/copies/*"):
        time_of_use = _time_of_use(copy)
        if time_of_use is not None:
            used_at[copy] = time_of_use
    for copy in sorted(used_at, key=lambda copy: (used_at[copy], copy)):
        is_recent = used_at[copy] > time.time() - _GRACE
        # All later ones were used more recently still.
        if is_recent or _total_size() <= limit:
            return
        _delete(copy)


def _delete(copy: Path) -> None:
    """Delete a copy, and the objects that no other copy has.

    Nothing is deleted if a process has locked the copy, or makes another one beside it.
    """
    objects = copy.parent.with_name("objects")
    deleted = copy.with_name(f".{copy.name}.gone")
    exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
    with (
        contextlib.suppress(BlockingIOError, FileNotFoundError),
        _locked(objects, exclusive),
        _locked(copy, exclusive),
    ):
        # Renamed first: a process that opens the path from now on makes a new copy.
        copy.rename(deleted)
        shutil.rmtree(deleted)
        for file in objects.iterdir():
            # Each copy has a hard link, so with one link no copy is left.
            if file.stat().st_nlink == 1:
                file.unlink()


def _total_size() -> int:
    """Bytes of all objects on this node."""
    total = 0
    for file in user_folder().glob("*/objects/*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _time_of_use(copy: Path) -> float | None:
    """When a process last got the path of a copy; None if the copy is deleted."""
    try:
        return copy.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_open_at(handle: int, path: Path) -> bool:
    """Whether a path still leads to the folder that is open."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(folder: Path, mode: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, mode)
        yield
    finally:
        os.close(handle)
