"""What a stage is: a function of the recipe and of what earlier stages left in the run directory, to files."""

from dataclasses import dataclass, field
from typing import Any

from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.store import Store


@dataclass(frozen=True)
class StageContext:
    """What every stage is given."""

    recipe: Recipe
    store: Store
    session: str  # id of this command: names its ledger segments, so that `last_run` can be told from the totals
    progress: Progress


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves: the files that count, and its part of summary.json."""

    files: list[str]
    summary: dict[str, Any] = field(default_factory=dict)
