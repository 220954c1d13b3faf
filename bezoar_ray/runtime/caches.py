"""The caches outside the run directory: where they lie, who says so, and whether one can write there."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_OWN, _HUB, _DATASETS = "BEZOAR_CACHE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"
_HOMES = ("HF_HOME", "XDG_CACHE_HOME")
_PROBE = bytes(65_536)


def bezoar_cache() -> Path:
    """Return our own cache, which holds the embedded world."""
    folder = os.environ.get(_OWN) or "~/.cache/bezoar_ray"
    return Path(folder).expanduser().absolute()


def hub_cache() -> Path:
    """Of the Hugging Face hub: it holds models."""
    return _of_hugging_face(_HUB, "hub")


def _of_hugging_face(variable: str, name: str) -> Path:
    home = (
        os.environ.get("HF_HOME")
        or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    )
    return Path(os.environ.get(variable) or f"{home}/{name}").expanduser().absolute()


def unwritable(
    embedded: bool = False, hub: bool = False, datasets: bool = False
) -> Iterator[str]:
    """A sentence for each of the caches asked about into which nothing can be written."""
    if embedded:
        yield from _problem(bezoar_cache(), (_OWN,))
    if hub:
        yield from _problem(hub_cache(), (_HUB, *_HOMES))
    if datasets:
        yield from _problem(
            _of_hugging_face(_DATASETS, "datasets"), (_DATASETS, *_HOMES)
        )


def _problem(folder: Path, variables: tuple[str, ...]) -> Iterator[str]:
    """`variables` may say where the cache is, the first of them before the others."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(_PROBE)
            file.flush()
    except OSError as error:
        said = next(
            (f"named by {name}" for name in variables if os.environ.get(name)),
            "the default",
        )
        yield (
            f"the cache {folder} ({said}) cannot be written: {there}: {error.strerror}. Mend that, or set "
            f"{variables[0]} to a folder on a disk with room"
        )
