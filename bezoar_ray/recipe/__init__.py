"""The recipe: what to make (models, prompts, data, thresholds) and how to run it (workers, keys, budget).

Fields marked `HOW` never enter a fingerprint: changing them goes on where the run stopped. All others do, so that a
changed rubric redoes the filter and what follows, and nothing else.
"""

from bezoar_ray.recipe.evaluation import CHECKPOINTS, Evaluate, Harness, HarnessTask, MtBench, Serve
from bezoar_ray.recipe.generation import (
    SCHEMES,
    EvolInstruct,
    Filter,
    Generate,
    Lamini,
    Meaning,
    Mixture,
    Orca,
    OwnScheme,
)
from bezoar_ray.recipe.load import Recipe, load_recipe, parse_recipe, recipe_names, recipe_of
from bezoar_ray.recipe.model_sections import ModelPart, Prices, Seeds, SourcePart, Teacher, Weights
from bezoar_ray.recipe.part import Part, Placed
from bezoar_ray.recipe.training import Align, Base, HhSft, Lora, Sft, Training

__all__ = [
    "CHECKPOINTS", "SCHEMES", "Align", "Base", "Evaluate", "EvolInstruct", "Filter", "Generate", "Harness",
    "HarnessTask", "HhSft", "Lamini", "Lora", "Meaning", "Mixture", "ModelPart", "MtBench", "Orca", "OwnScheme",
    "Part", "Placed", "Prices", "Recipe", "Seeds", "Serve", "Sft", "SourcePart", "Teacher", "Training",
    "Weights", "load_recipe", "parse_recipe", "recipe_names", "recipe_of",
]  # fmt: skip
