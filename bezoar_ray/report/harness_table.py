"""LM Evaluation Harness results as a table: a row per metric, a column per checkpoint, and the mean of what has one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bezoar_ray.recipe import HarnessTask, Recipe
from bezoar_ray.stages import checkpoint_names

# Of lm-eval's metrics, those that are better the lower they are: for results without `higher_is_better`.
_LOWER = {
    "bits_per_byte",
    "brier_score",
    "byte_perplexity",
    "perplexity",
    "ter",
    "word_perplexity",
}
_DIRECTIONS = {
    True: "higher is better",
    False: "lower is better",
    None: "direction unknown",
}


@dataclass(frozen=True)
class Score:
    """A value with its standard error, which is null where lm-eval gives none."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class MetricRow:
    """One metric of a task, with its score by checkpoint; the direction is None where lm-eval knows none."""

    task: str
    metric: str
    scores: dict[str, Score]
    higher_is_better: bool | None

    @property
    def best(self) -> float | None:
        """The best checkpoint's value; None where the direction is unknown."""
        if self.higher_is_better is None:
            return None
        return (max if self.higher_is_better else min)(
            score.value for score in self.scores.values()
        )

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        return _DIRECTIONS[self.higher_is_better]

    @property
    def is_share(self) -> bool:
        """Whether all values are shares, a higher one is better, and so a mean with others of them makes sense."""
        return self.higher_is_better is True and all(
            0 <= score.value <= 1 for score in self.scores.values()
        )


@dataclass(frozen=True)
class HarnessTable:
    """`rows`: of each task the metric that the recipe names, if it is a share; `mean`: of these, for checkpoints that
    have all of them; `others`: all other metrics, in their own units, which enter no mean."""

    checkpoints: list[str]
    rows: list[MetricRow]
    others: list[MetricRow]
    mean: dict[str, Score]


def harness(recipe: Recipe, found: dict[str, Any]) -> HarnessTable:
    """The table of `eval.harness` of summary.json."""
    part = recipe.evaluate.harness
    names = [name for name in checkpoint_names() if found.get(name)]
    rows: list[MetricRow] = []
    others: list[MetricRow] = []
    for task, title in (
        [(task, part.name_of(task)) for task in part.all_tasks] if part else []
    ):
        results = {name: found[name].get(title, {}) for name in names}
        for row in _rows(title, task, results):
            (rows if row.metric == task.metric and row.is_share else others).append(row)
    return HarnessTable(
        names,
        rows,
        others,
        {name: mean for name in names if (mean := _mean(rows, name))},
    )


def below_base(
    table: HarnessTable, mt_bench: dict[str, Any], bench_name: str
) -> list[str]:
    """A sentence for each checkpoint that is worse than its base by more than the error bars (95 %).

    Args:
        table: the harness results; the mean counts, with the tasks taken as independent.
        mt_bench: of summary.json, by model; the paired difference counts.
        bench_name: what its questions are called.
    """
    found = []
    base = table.mean.get("base")
    for name, mean in table.mean.items():
        if name == "base" or not base or mean.stderr is None or base.stderr is None:
            continue
        least = base.value - 1.96 * (mean.stderr**2 + base.stderr**2) ** 0.5
        if mean.value < least:
            found.append(
                f"{name} is below its base in the harness: {100 * mean.value:.1f} % in the mean, and base "
                f"{100 * base.value:.1f} %"
            )
    for name in checkpoint_names():
        versus = mt_bench.get(name, {}).get("versus_base") or {}
        if versus.get("ci95") and versus["ci95"][1] < 0:
            found.append(
                f"{name} is below its base in {bench_name}, by {-versus['difference']:.2f}"
            )
    return found


def _rows(
    title: str, task: HarnessTask, results: dict[str, Any]
) -> Iterator[MetricRow]:
    """The metrics of one task that have a value, the recipe's first, from its results by checkpoint."""
    for metric in dict.fromkeys(
        (task.metric, *(metric for found in results.values() for metric in found))
    ):
        parts = {
            name: found[metric] for name, found in results.items() if metric in found
        }
        scores = {
            name: Score(part["value"], _number(part.get("stderr")))
            for name, part in parts.items()
            if part["value"] is not None
        }
        if scores:
            yield MetricRow(
                title, metric, scores, _direction(metric, list(parts.values()))
            )


def _direction(metric: str, parts: list[dict[str, Any]]) -> bool | None:
    """As lm-eval has it; by the name in summaries of earlier versions."""
    known = (part["higher_is_better"] for part in parts if "higher_is_better" in part)
    return next(known, metric.partition(",")[0] not in _LOWER)


def _mean(rows: list[MetricRow], name: str) -> Score | None:
    """Mean over the tasks, and its standard error with the tasks taken as independent."""
    scores = [row.scores[name] for row in rows if name in row.scores]
    if not scores or len(scores) < len(rows):
        return None
    value = sum(score.value for score in scores) / len(scores)
    squares = [score.stderr**2 for score in scores if score.stderr is not None]
    return Score(
        value,
        sum(squares) ** 0.5 / len(scores) if len(squares) == len(scores) else None,
    )


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) else None
