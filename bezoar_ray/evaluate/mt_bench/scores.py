"""MT-Bench scores: means over the scored judgments, with bootstrap intervals over questions."""

from collections import defaultdict
from typing import Any

from bezoar_ray.evaluate.mt_bench.judging import Judgment

_RESAMPLES = 10_000


def summarise(judgments: list[Judgment], base: list[Judgment] | None = None) -> dict[str, Any]:
    """One checkpoint's part of summary.json; with `base`, also the paired difference to base's judgments."""
    scored = [j for j in judgments if j.score is not None]
    summary = {
        "score": _mean([j.score for j in scored]),
        "ci95": _interval(_by_question([(j.question_id, j.score) for j in scored])),
        "by_category": _by_category(scored),
        "scored": len(scored),
        "unscored": len(judgments) - len(scored),
    }
    return summary | ({"versus_base": _versus(scored, base)} if base is not None else {})


def _versus(scored: list[Judgment], base: list[Judgment]) -> dict[str, Any]:
    """Score minus base's over the turns that both have a score for."""
    theirs = {(j.question_id, j.turn): j.score for j in base if j.score is not None}
    pairs = [(j, (j.question_id, j.turn)) for j in scored]
    differences = [(j.question_id, j.score - theirs[turn]) for j, turn in pairs if turn in theirs]
    return {"difference": _mean([d for _, d in differences]), "ci95": _interval(_by_question(differences))}


def _by_category(scored: list[Judgment]) -> dict[str, float]:
    groups = defaultdict(list)
    for judgment in scored:
        groups[judgment.category].append(judgment.score)
    return {category: _mean(values) for category, values in sorted(groups.items())}


def _by_question(values: list[tuple[int | str, float]]) -> list[list[float]]:
    groups = defaultdict(list)
    for question, value in values:
        groups[question].append(value)
    return list(groups.values())


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _interval(questions: list[list[float]]) -> list[float] | None:
    """95 % percentile bootstrap of the mean: whole questions are drawn, since turns of one question go together."""
    if not questions:
        return None
    import numpy as np

    sums, counts = np.array([sum(q) for q in questions]), np.array([len(q) for q in questions])
    drawn = np.random.default_rng(0).integers(0, len(questions), (_RESAMPLES, len(questions)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return [float(q) for q in np.quantile(means, [0.025, 0.975])]
