"""The stages' context for a benchmark."""

from pathlib import Path
from typing import Any

from bezoar_ray.recipe import load_recipe, parse_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store


def context(folder: str, **sections: Any) -> StageContext:
    """The recipe `tiny` with some sections in place of its own, in a run directory of its own."""
    tree = load_recipe("tiny").model_dump(mode="json") | sections
    return StageContext(
        parse_recipe(tree, "benchmark"), Store(Path(folder)), "s", Progress(every=60)
    )
