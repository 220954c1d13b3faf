"""LM Evaluation Harness results as one table: a row per task, a column per checkpoint, and their mean."""

from dataclasses import dataclass
from typing import Any

from bezoar_ray.recipe import CHECKPOINTS, Recipe


@dataclass(frozen=True)
class Score:
    """A share from 0 to 1 with its standard error, which is null where lm-eval gives none."""

    value: float
    stderr: float | None


Row = tuple[str, str, dict[str, Score]]


@dataclass(frozen=True)
class Harness:
    """`rows`: (task, metric, score by checkpoint); `mean`: over the tasks that the checkpoint has all of; `others`: of
    metrics that are no shares of a whole (perplexity), and enter no mean."""

    checkpoints: list[str]
    rows: list[Row]
    others: list[Row]
    mean: dict[str, Score]


def harness(recipe: Recipe, found: dict[str, Any]) -> Harness:
    """The table of `eval.harness` of summary.json, one metric per task: the one that the recipe names."""
    part = recipe.evaluate.harness
    tasks = [(part.name_of(task), task.metric) for task in part.all_tasks] if part else []
    names = [name for name in CHECKPOINTS if found.get(name)]
    rows = [(task, metric, _scores(found, names, task, metric)) for task, metric in tasks]
    others = [row for row in rows if any(not 0 <= score.value <= 1 for score in row[2].values())]
    rows = [row for row in rows if row[2] and row not in others]
    return Harness(names, rows, others, {name: mean for name in names if (mean := _mean(rows, name))})


def below_base(table: Harness, mt_bench: dict[str, Any], bench_name: str) -> list[str]:
    """A sentence for each checkpoint that is worse than its base by more than the error bars (95 %).

    Args:
        table: the harness results; the mean counts, with the tasks taken as independent.
        mt_bench: of summary.json, by model; the paired difference counts.
        bench_name: what its questions are called.
    """
    found = []
    base = table.mean.get("base")
    for name, mean in table.mean.items():
        errors = (mean.stderr, base.stderr) if base else ()
        if name != "base" and errors and None not in errors:
            least = base.value - 1.96 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
            if mean.value < least:
                found.append(
                    f"{name} is below its base in the harness: {100 * mean.value:.1f} % in the mean, and base "
                    f"{100 * base.value:.1f} %"
                )
    for name in CHECKPOINTS:
        versus = mt_bench.get(name, {}).get("versus_base") or {}
        if versus.get("ci95") and versus["ci95"][1] < 0:
            found.append(f"{name} is below its base in {bench_name}, by {-versus['difference']:.2f}")
    return found


def _scores(found: dict[str, Any], names: list[str], task: str, metric: str) -> dict[str, Score]:
    parts = {name: found[name].get(task, {}).get(metric) for name in names}
    return {
        name: Score(part["value"], _number(part.get("stderr")))
        for name, part in parts.items()
        if part and part["value"] is not None
    }


def _mean(rows: list[Row], name: str) -> Score | None:
    """Mean over the tasks, and its standard error with the tasks taken as independent."""
    scores = [row[2][name] for row in rows if name in row[2]]
    if not scores or len(scores) < len(rows):
        return None
    value = sum(score.value for score in scores) / len(scores)
    squares = [score.stderr**2 for score in scores if score.stderr is not None]
    return Score(value, sum(squares) ** 0.5 / len(scores) if len(squares) == len(scores) else None)


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None
