"""The caches outside the run directory: where they are, and whether one can write there."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_OWN = "BEZOAR_CACHE"
_HUB = "HF_HUB_CACHE"
_DATASETS = "HF_DATASETS_CACHE"
_HOMES = ("HF_HOME", "XDG_CACHE_HOME")
_PROBE = bytes(65_536)  # a full disk still takes an empty file


def bezoar_cache() -> Path:
    """Return our own cache, which holds the embedded world."""
    folder = os.environ.get(_OWN) or "~/.cache/bezoar_ray"
    return Path(folder).expanduser().absolute()


def hub_cache() -> Path:
    """Return the cache of the Hugging Face hub, which holds models."""
    return _hugging_face_cache(_HUB, "hub")


def _hugging_face_cache(variable: str, name: str) -> Path:
    """Return a cache as Hugging Face's libraries find it.

    Args:
        variable: The environment variable that names this cache alone.
        name: The folder's name in the common cache.
    """
    home = os.environ.get("HF_HOME")
    if not home:
        user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = f"{user_cache}/huggingface"
    folder = os.environ.get(variable) or f"{home}/{name}"
    return Path(folder).expanduser().absolute()


def unwritable(
    embedded: bool = False, hub: bool = False, datasets: bool = False
) -> Iterator[str]:
    """Yield a sentence for each of these caches that cannot be written.

    Nothing is left in a cache, and no folder is made.
    """
    if embedded:
        yield from _problem(bezoar_cache(), (_OWN,))
    if hub:
        yield from _problem(hub_cache(), (_HUB, *_HOMES))
    if datasets:
        folder = _hugging_face_cache(_DATASETS, "datasets")
        yield from _problem(folder, (_DATASETS, *_HOMES))


def _problem(folder: Path, variables: tuple[str, ...]) -> Iterator[str]:
    """Yield why a folder cannot be written; nothing where it can.

    Args:
        folder: A cache, which may not exist yet.
        variables: The environment variables that may name it, the strongest first.
    """
    candidates = (folder, *folder.parents)
    # lexists, as nothing can be made below a broken link.
    existing = next(path for path in candidates if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(_PROBE)
            file.flush()
    except OSError as error:
        named_by = [name for name in variables if os.environ.get(name)]
        origin = f"named by {named_by[0]}" if named_by else "the default"
        yield (
            f"the cache {folder} ({origin}) cannot be written: {existing}: "
            f"{error.strerror}. Fix that, or set {variables[0]} to a folder on a disk "
            "with free space"
        )
