"""MT-Bench scores: means over the scored judgments and shares of wins, with bootstrap intervals over questions."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from bezoar_ray.evaluate.mt_bench.judge_prompts import TIE
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison

Scored = tuple[Judgment, float]
"""A judgment and its score, which could be read."""
_RESAMPLES = 10_000


def summarise(
    judgments: list[Judgment], base: list[Judgment] | None = None
) -> dict[str, object]:
    """One model's part of summary.json, by one judge's grades; with `base`, also the paired difference to base's."""
    scored = [(j, j.score) for j in judgments if j.score is not None]
    summary = {
        "score": mean([score for _, score in scored]),
        "ci95": _interval(
            _by_question([(j.question_id, score) for j, score in scored])
        ),
        "by_category": _by_category(scored),
        "scored": len(scored),
        "unscored": len(judgments) - len(scored),
    }
    return summary | (
        {"versus_base": _versus(scored, base)} if base is not None else {}
    )


def against(
    name: str, comparisons: Sequence[Comparison]
) -> dict[str, dict[str, object]]:
    """How one model fares against each that it was compared with; a tie counts half in `win_rate`."""
    return {
        other: _record(name, found)
        for other, found in _by_other(name, comparisons).items()
    }


def mean(values: list[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def _by_other(
    name: str, comparisons: Sequence[Comparison]
) -> dict[str, list[Comparison]]:
    groups = defaultdict(list)
    for comparison in comparisons:
        if name in comparison.models:
            groups[next(other for other in comparison.models if other != name)].append(
                comparison
            )
    return groups


def _record(name: str, comparisons: list[Comparison]) -> dict[str, object]:
    ends = Counter(comparison.winner for comparison in comparisons)
    points = [
        (c.question_id, {name: 1.0, TIE: 0.5}.get(c.winner, 0.0))
        for c in comparisons
        if c.winner
    ]
    return {
        "wins": ends[name],
        "ties": ends[TIE],
        "losses": ends.total() - ends[name] - ends[TIE] - ends[None],
        "unscored": ends[None],
        "win_rate": mean([share for _, share in points]),
        "ci95": _interval(_by_question(points)),
    }


def _versus(scored: list[Scored], base: list[Judgment]) -> dict[str, object]:
    """Score minus base's over the turns that both have a score for."""
    theirs = {(j.question_id, j.turn): j.score for j in base if j.score is not None}
    pairs = [(score, (j.question_id, j.turn)) for j, score in scored]
    differences = [
        (turn[0], score - theirs[turn]) for score, turn in pairs if turn in theirs
    ]
    return {
        "difference": mean([d for _, d in differences]),
        "ci95": _interval(_by_question(differences)),
    }


def _by_category(scored: list[Scored]) -> dict[str, float]:
    groups = defaultdict(list)
    for judgment, score in scored:
        groups[judgment.category].append(score)
    return {
        category: sum(values) / len(values)
        for category, values in sorted(groups.items())
    }


def _by_question(values: list[tuple[int | str, float]]) -> list[list[float]]:
    groups = defaultdict(list)
    for question, value in values:
        groups[question].append(value)
    return list(groups.values())


def _interval(questions: list[list[float]]) -> list[float] | None:
    """95 % percentile bootstrap of the mean: whole questions are drawn, since turns of one question go together."""
    if not questions:
        return None
    import numpy as np

    sums, counts = (
        np.array([sum(q) for q in questions]),
        np.array([len(q) for q in questions]),
    )
    drawn = np.random.default_rng(0).integers(
        0, len(questions), (_RESAMPLES, len(questions))
    )
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return [float(q) for q in np.quantile(means, [0.025, 0.975])]
