"""The recipe: what a run makes (models, data, thresholds) and how it is carried out.

Fields marked `RUNTIME_ONLY` (workers, keys, budgets) do not enter a fingerprint: after
a change to one of them, the run resumes. All other fields do. A changed rubric, for
instance, redoes the filter and the stages after it, and nothing else.
"""

from bezoar_ray.recipe.evaluation import (
    BiasMetric,
    Evaluate,
    Harness,
    HarnessTask,
    MtBench,
    RewardBench,
    Serve,
)
from bezoar_ray.recipe.generation import (
    OWN_DECISIONS,
    CustomCode,
    CustomScheme,
    EvolInstruct,
    Filter,
    Generate,
    Lamini,
    Meaning,
    Mixture,
    Orca,
    Review,
)
from bezoar_ray.recipe.load import (
    Recipe,
    load_recipe,
    parse_recipe,
    recipe_names,
    recipe_of,
)
from bezoar_ray.recipe.model_sections import (
    ModelSection,
    Prices,
    RatingSource,
    RowJudge,
    Seeds,
    SourceSection,
    Teacher,
    Weights,
)
from bezoar_ray.recipe.section import SchedulingSection, Section
from bezoar_ray.recipe.steering import Steer
from bezoar_ray.recipe.training import (
    Align,
    Base,
    HhSft,
    Lora,
    Ppo,
    Rm,
    Sft,
    Training,
)

__all__ = [
    "OWN_DECISIONS",
    "Align",
    "Base",
    "BiasMetric",
    "Evaluate",
    "EvolInstruct",
    "Filter",
    "Generate",
    "Harness",
    "HarnessTask",
    "HhSft",
    "Lamini",
    "Lora",
    "Meaning",
    "Mixture",
    "ModelSection",
    "MtBench",
    "Orca",
    "CustomCode",
    "CustomScheme",
    "Section",
    "SchedulingSection",
    "Ppo",
    "Steer",
    "Prices",
    "RatingSource",
    "Recipe",
    "Review",
    "RewardBench",
    "Rm",
    "RowJudge",
    "Seeds",
    "Serve",
    "Sft",
    "SourceSection",
    "Teacher",
    "Training",
    "Weights",
    "load_recipe",
    "parse_recipe",
    "recipe_names",
    "recipe_of",
]
