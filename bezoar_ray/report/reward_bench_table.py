"""RewardBench results as a table: one row per section, one column per model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bezoar_ray.recipe import Rm
from bezoar_ray.stages import REWARD_MODEL, checkpoint_names

_TITLES = {"one": "RewardBench 1", "two": "RewardBench 2"}


@dataclass(frozen=True)
class SectionScore:
    """A model's score in one section."""

    value: float
    ci95: list[float] | None
    """None for the overall score, which has no interval."""


@dataclass(frozen=True)
class SectionRow:
    """One section of a version, or its overall score."""

    title: str
    """The version."""
    section: str
    items: int
    """Items that the model in the first column has scored; 0 for the overall score."""
    scores: dict[str, SectionScore]
    """By model."""

    @property
    def best(self) -> float:
        """The best score of all models."""
        return max(score.value for score in self.scores.values())

    @property
    def is_overall(self) -> bool:
        """Whether it is the mean of the sections above."""
        return self.section == "overall"


@dataclass(frozen=True)
class RewardBenchTable:
    """The results of the reward model and of the checkpoints' implicit rewards."""

    models: list[str]
    """The reward model, then the checkpoints in the order of training."""
    rows: list[SectionRow]
    left_out: list[str]
    """A sentence for each model and version with items that did not fit."""
    weights: dict[str, float]
    """Of the attributes in the reward model's score; empty without one."""

    @property
    def weights_in_words(self) -> str:
        """The weights, and how they were chosen."""
        if not self.weights:
            return ""
        terms = ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items())
        if self.weights == dict(Rm().weights):
            return (
                f"Weights of the attributes in the score: {terms}. HelpSteer2's authors "
                "searched for them on RewardBench 1 itself, with a 70B model (arXiv "
                "2406.08673). They were not chosen for this model, and they may favor "
                "RewardBench 1."
            )
        return (
            f"Weights of the attributes in the score: {terms}. They are the recipe's "
            "own (`rm.weights`). Published scores use weights that were searched for "
            "on RewardBench 1 itself (arXiv 2406.08673)."
        )


def reward_bench_table(results: dict[str, Any]) -> RewardBenchTable:
    """Build the table from `eval.reward_bench` of summary.json.

    Args:
        results: empty if RewardBench did not run.
    """
    results_of_model: dict[str, dict[str, Any]] = {}
    of_reward_model = {
        version: results[version] for version in _TITLES if version in results
    }
    if of_reward_model:
        results_of_model[REWARD_MODEL] = of_reward_model
    implicit = results.get("implicit", {})
    for name in checkpoint_names():
        if name in implicit:
            results_of_model[name] = implicit[name]
    rows = []
    left_out = []
    for version, title in _TITLES.items():
        of_version = {
            name: by_version[version]
            for name, by_version in results_of_model.items()
            if version in by_version
        }
        rows += list(_rows(title, of_version))
        for name, result in of_version.items():
            if result["left_out"]:
                left_out.append(
                    f"{name} left out {result['left_out']:,} items of {title}, which "
                    "do not fit in its context"
                )
    weights = results.get("weights", {})
    return RewardBenchTable(list(results_of_model), rows, left_out, weights)


def _rows(title: str, results: dict[str, Any]) -> Iterator[SectionRow]:
    """Yield a row for each section of a version, and one for the overall score.

    Args:
        title: of the version.
        results: by model.
    """
    sections = dict.fromkeys(
        section for result in results.values() for section in result["sections"]
    )
    for section in sections:
        scores = {}
        counts = []
        for name, result in results.items():
            entry = result["sections"].get(section)
            if entry:
                scores[name] = SectionScore(entry["score"], entry["ci95"])
                counts.append(entry["items"])
        yield SectionRow(title, section, counts[0], scores)
    overall = {
        name: SectionScore(result["overall"], None)
        for name, result in results.items()
        if result["overall"] is not None
    }
    if overall:
        yield SectionRow(title, "overall", 0, overall)
