"""A training stage in a process with a Ray of its own, which a test can kill."""

import sys

from bezoar_ray.recipe import Recipe
from bezoar_ray.store import Store

RUN_STAGE = """
import sys
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.recipe import Recipe
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import training_stages

recipe_file, root, stage = sys.argv[1:]
with ray_session():
    recipe = Recipe.model_validate_json(open(recipe_file).read())
    context = StageContext(recipe, Store(root), "test", Progress(), stage=stage)
    training_stages.run(context)
"""


def command(store: Store, recipe: Recipe, stage: str) -> list[str]:
    """The command that carries out the stage in a run directory."""
    recipe_file = store.path("recipe.json")
    recipe_file.write_text(recipe.model_dump_json())
    return [sys.executable, "-c", RUN_STAGE, str(recipe_file), str(store.root), stage]
