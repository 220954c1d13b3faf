"""The caches outside the run directory: where they lie, who says so, and whether one can write there."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bezoar_ray.recipe import Recipe
from bezoar_ray.tiny import cache, fingerprint

_OWN, _HUB, _DATASETS = "BEZOAR_CACHE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"
_HOMES = ("HF_HOME", "XDG_CACHE_HOME")
_BUILT = re.compile(
    r'"tiny(-teacher|-base)?"'
)  # how recipes name what of the embedded world has to be built
_PROBE = bytes(65_536)


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
        yield from _problem(cache(), (_OWN,))
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


def world_folder() -> Path:
    """Where the embedded world of this code is, or will be."""
    return cache() / f"tiny-{fingerprint()}"


def is_world_missing(recipe: Recipe) -> bool:
    """Whether the embedded world would be built for the recipe; its judge needs no building."""
    return (
        bool(_BUILT.search(recipe.model_dump_json(exclude={"name"})))
        and not world_folder().exists()
    )
