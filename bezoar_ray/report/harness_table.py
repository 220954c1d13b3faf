"""LM Evaluation Harness results as a table: one row per metric, one column per checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bezoar_ray.recipe import BiasMetric, HarnessTask, Recipe
from bezoar_ray.stages import BASE, checkpoint_names

# lm-eval's metrics for which a lower value is better. They are needed for results of
# earlier versions, which have no `higher_is_better`.
_LOWER_IS_BETTER = {
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
_Z_95 = 1.96  # half the width of a 95 % interval, in standard errors


@dataclass(frozen=True)
class Score:
    """A value and its standard error."""

    value: float
    stderr: float | None
    """None if lm-eval gives none."""


@dataclass(frozen=True)
class MetricRow:
    """One metric of one task."""

    task: str
    metric: str
    scores: dict[str, Score]
    """By checkpoint."""
    higher_is_better: bool | None
    """None if lm-eval does not know the direction."""

    @property
    def best(self) -> float | None:
        """The best value of all checkpoints; None if the direction is unknown."""
        if self.higher_is_better is None:
            return None
        values = [score.value for score in self.scores.values()]
        return max(values) if self.higher_is_better else min(values)

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        return _DIRECTIONS[self.higher_is_better]

    @property
    def is_share(self) -> bool:
        """Whether the metric may enter the mean.

        All values must be shares, from 0 to 1, and a higher one must be better.
        """
        values = [score.value for score in self.scores.values()]
        in_range = all(0 <= value <= 1 for value in values)
        return self.higher_is_better is True and in_range


@dataclass(frozen=True)
class Difference:
    """A checkpoint's value minus that of base."""

    value: float
    ci95: list[float] | None
    """None if lm-eval gives no standard error. It takes both values as independent. As
    they are of the same items, it is rather too wide."""


@dataclass(frozen=True)
class BiasRow:
    """One metric of a task on social bias."""

    scores: MetricRow
    ideal: float | None
    """None where the recipe names none."""
    meaning: str
    differences: dict[str, Difference]
    """By checkpoint, against base."""


@dataclass(frozen=True)
class HarnessTable:
    """The results of all checkpoints."""

    checkpoints: list[str]
    rows: list[MetricRow]
    """For each task the metric that the recipe names, if it is a share."""
    others: list[MetricRow]
    """All other metrics, in their own units. They enter no mean."""
    mean: dict[str, Score]
    """The mean of `rows` for each checkpoint that has all of them."""
    bias: list[BiasRow]
    """The metrics of tasks on social bias. They enter no mean."""


def harness(recipe: Recipe, results: dict[str, Any]) -> HarnessTable:
    """Build the table from `eval.harness` of summary.json."""
    section = recipe.evaluate.harness
    names = [name for name in checkpoint_names() if results.get(name)]
    if section is None:
        return HarnessTable(names, [], [], {}, [])
    rows: list[MetricRow] = []
    others: list[MetricRow] = []
    bias: list[BiasRow] = []
    for task in section.all_tasks:
        title = section.name_of(task)
        of_task = {name: results[name].get(title, {}) for name in names}
        for row in _metric_rows(title, task, of_task):
            if task.bias:
                bias.append(_bias_row(row, task.bias))
            elif row.metric == task.metric and row.is_share:
                rows.append(row)
            else:
                others.append(row)
    means = {}
    for name in names:
        mean = _mean(rows, name)
        if mean:
            means[name] = mean
    # Metrics with an ideal first; the sort keeps the order of tasks otherwise.
    bias.sort(key=lambda row: row.ideal is None)
    return HarnessTable(names, rows, others, means, bias)


def _bias_row(row: MetricRow, metrics: tuple[BiasMetric, ...]) -> BiasRow:
    ideal = None
    meaning = row.direction
    for metric in metrics:
        if metric.metric == row.metric:
            ideal = metric.ideal
            meaning = metric.meaning
    base = row.scores.get(BASE)
    differences = {}
    for name, score in row.scores.items():
        if base and name != BASE:
            differences[name] = _difference(score, base)
    return BiasRow(row, ideal, meaning, differences)


def _difference(score: Score, base: Score) -> Difference:
    value = score.value - base.value
    if score.stderr is None or base.stderr is None:
        return Difference(value, None)
    half_width = _Z_95 * (score.stderr**2 + base.stderr**2) ** 0.5
    return Difference(value, [value - half_width, value + half_width])


def below_base(
    table: HarnessTable, mt_bench: dict[str, Any], bench_name: str
) -> list[str]:
    """Write a warning for each checkpoint that is worse than base.

    The difference must be outside its 95 % interval.

    Args:
        table: the harness results. The means are compared; the tasks are taken as
            independent.
        mt_bench: of summary.json, by model. The paired difference counts.
        bench_name: how the report calls the questions.
    """
    warnings = []
    base = table.mean.get("base")
    for name, mean in table.mean.items():
        if name == "base" or not base or mean.stderr is None or base.stderr is None:
            continue
        stderr_of_difference = (mean.stderr**2 + base.stderr**2) ** 0.5
        if mean.value < base.value - _Z_95 * stderr_of_difference:
            warnings.append(
                f"{name} is below base in the harness: its mean is {100 * mean.value:.1f} %, the mean of base "
                f"{100 * base.value:.1f} %"
            )
    for name in checkpoint_names():
        versus_base = mt_bench.get(name, {}).get("versus_base") or {}
        interval = versus_base.get("ci95")
        if interval and interval[1] < 0:
            warnings.append(
                f"{name} is below base in {bench_name}, by {-versus_base['difference']:.2f}"
            )
    return warnings


def _metric_rows(
    title: str, task: HarnessTask, results: dict[str, Any]
) -> Iterator[MetricRow]:
    """Yield the rows of one task, the recipe's metric first.

    Args:
        title: the task's name in the table.
        task: the recipe's task.
        results: the task's metrics, by checkpoint.
    """
    metrics = {task.metric: None}
    for of_checkpoint in results.values():
        metrics |= dict.fromkeys(of_checkpoint)
    for metric in metrics:
        entries = []
        scores = {}
        for name, of_checkpoint in results.items():
            if metric not in of_checkpoint:
                continue
            entry = of_checkpoint[metric]
            entries.append(entry)
            value = entry["value"]
            if value is not None:
                stderr = _number(entry.get("stderr"))
                scores[name] = Score(value, stderr)
        if scores:
            yield MetricRow(title, metric, scores, _direction(metric, entries))


def _direction(metric: str, entries: list[dict[str, Any]]) -> bool | None:
    """Return lm-eval's `higher_is_better`, or guess it from the metric's name.

    Only results of earlier versions need the guess.
    """
    for entry in entries:
        if "higher_is_better" in entry:
            known: bool | None = entry["higher_is_better"]
            return known
    return metric.partition(",")[0] not in _LOWER_IS_BETTER


def _mean(rows: list[MetricRow], name: str) -> Score | None:
    """Compute a checkpoint's mean; None if it lacks a task.

    Its standard error takes the tasks as independent.
    """
    scores = [row.scores[name] for row in rows if name in row.scores]
    if not scores or len(scores) < len(rows):
        return None
    value = sum(score.value for score in scores) / len(scores)
    squares = [score.stderr**2 for score in scores if score.stderr is not None]
    if len(squares) < len(scores):
        return Score(value, None)
    return Score(value, sum(squares) ** 0.5 / len(scores))


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) else None
