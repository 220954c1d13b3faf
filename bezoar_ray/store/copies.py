"""A node's copies of objects, which its processes share; above a limit, those that were used least recently go.

For each run directory, `objects` holds the bytes of each object once. `copies` holds the folders whose paths are handed
out; their files are links to `objects`. A process locks each copy that it has a path of, so that nobody deletes what an
engine opens later. It gives a lock up when it ends, however it ends, or asks for the same name and that has changed.
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
"""The environment variable that says what a node's copies may take; without it, half of the disk."""
_GRACE = 600.0  # seconds for which a copy stays in any case: its path may be on the way to another process
_held: dict[
    tuple[Path, str], int
] = {}  # by name: this process's handle of the copy, which is locked
_holding = threading.Lock()


class Copies:
    """Those of the objects of one run directory.

    Raises:
        RecipeError: the limit is no number of GiB, or the folder is another user's.
    """

    def __init__(self, root: str, download: Callable[[str, Path], None]):
        self.folder = own_folder() / mark(root)
        self._download, self._limit = download, _limit()

    def get(self, name: str, found: Entries) -> Path:
        """The folder of a copy of the objects that a name stands for now. This process holds it."""
        copy, is_new = (
            self.folder
            / "copies"
            / mark(*(f"{entry['path']} {entry['e_tag']}" for entry in found)),
            False,
        )
        while found and not _hold((self.folder, name), copy):
            self._make(found, copy)
            is_new = True
        if is_new:
            _evict(self._limit)
        return copy

    def _make(self, found: Entries, copy: Path) -> None:
        """Whole, or not at all: several processes of a node may want the same copy."""
        objects = self.folder / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        with _locked(objects, fcntl.LOCK_SH):
            partial = copy.with_name(f".{copy.name}.{uuid.uuid4().hex[:8]}")
            for entry in found:
                target = partial / entry["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self._object(objects, entry), target)
            with contextlib.suppress(OSError):  # another process was faster
                partial.rename(copy)
            shutil.rmtree(partial, ignore_errors=True)

    def _object(self, objects: Path, entry: "ObjectMeta") -> Path:
        """A node's one copy of an object's bytes."""
        file = objects / mark(entry["path"], entry["e_tag"] or "")
        if not file.exists():
            with open(file.with_name(f".{file.name}.lock"), "w") as lock:
                fcntl.flock(
                    lock, fcntl.LOCK_EX
                )  # the workers of a node want the same weights at once
                if not file.exists():
                    partial = file.with_name(f".{file.name}")
                    self._download(entry["path"], partial)
                    partial.rename(file)
        return file


def own_folder() -> Path:
    """Of this user, on this node's disk: nobody else may read rows there, or put weights in their place."""
    folder = Path(tempfile.gettempdir()) / f"bezoar_ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise RecipeError(
            f"{folder} is another user's. Remove it, or name a folder of your own in TMPDIR"
        )
    return folder


def mark(*texts: str) -> str:
    """16 hex digits that stand for some texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _limit() -> float:
    """Bytes."""
    given = os.environ.get(LIMIT)
    if given is None:
        return shutil.disk_usage(own_folder()).total / 2
    try:
        size = float(given)
    except ValueError:
        size = math.nan
    if not size >= 0:
        raise RecipeError(
            f"{LIMIT}: {given!r} is no number of GiB. Give one, or unset the variable for half the disk"
        )
    return size * 2**30


def _hold(key: tuple[Path, str], copy: Path) -> bool:
    """Lock a copy for this process, in place of an earlier one by the same name. False where there is no such copy."""
    try:
        handle = os.open(copy, os.O_RDONLY)
    except FileNotFoundError:
        return False
    fcntl.flock(handle, fcntl.LOCK_SH)
    if not _is_at(handle, copy):  # it was deleted meanwhile
        os.close(handle)
        return False
    os.utime(handle)
    with _holding:
        earlier, _held[key] = _held.get(key), handle
    if earlier is not None:
        os.close(earlier)
    return True


def _evict(limit: float) -> None:
    """Delete copies that no process holds until the node's take no more than the limit."""
    used = sorted(
        (time_of_use, copy)
        for copy in own_folder().glob("*/copies/*")
        if (time_of_use := _used(copy))
    )
    for time_of_use, copy in used:
        if time_of_use > time.time() - _GRACE or _size() <= limit:
            return
        _delete(copy)


def _delete(copy: Path) -> None:
    """Delete a copy, and the objects that no other has, unless a process holds it or makes one beside it."""
    objects, gone = (
        copy.parent.with_name("objects"),
        copy.with_name(f".{copy.name}.gone"),
    )
    alone = fcntl.LOCK_EX | fcntl.LOCK_NB
    with (
        contextlib.suppress(BlockingIOError, FileNotFoundError),
        _locked(objects, alone),
        _locked(copy, alone),
    ):
        copy.rename(gone)
        shutil.rmtree(gone)
        for file in objects.iterdir():
            if file.stat().st_nlink == 1:
                file.unlink()


def _size() -> int:
    """Bytes of all objects on this node."""
    total = 0
    for file in own_folder().glob("*/objects/*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _used(copy: Path) -> float:
    """When a process was last given its path; 0 where it has gone."""
    try:
        return copy.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)
