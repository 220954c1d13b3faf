"""MT-Bench scores: mean grades and win rates, with bootstrap intervals over questions."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from bezoar_ray.evaluate.mt_bench.judge_prompts import TIE
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison

Summary = dict[str, object]
"""A part of summary.json."""
Scored = tuple[Judgment, float]
"""A judgment, and its score."""
QuestionValue = tuple[int | str, float]
"""A question's id, and the value of one of its turns."""
_RESAMPLES = 10_000


def summarize(judgments: list[Judgment], base: list[Judgment] | None = None) -> Summary:
    """Summarize one model's grades by one judge, as summary.json has them.

    Args:
        judgments: the grades of the model.
        base: the grades of the base checkpoint. With them, the summary has the paired
            difference `versus_base`, too.
    """
    scored = [
        (judgment, judgment.score)
        for judgment in judgments
        if judgment.score is not None
    ]
    values = [(judgment.question_id, score) for judgment, score in scored]
    summary: Summary = {
        "score": mean([score for _, score in scored]),
        "ci95": _interval(values),
        "by_category": _by_category(scored),
        "scored": len(scored),
        "unscored": len(judgments) - len(scored),
    }
    if base is not None:
        summary["versus_base"] = _versus_base(scored, base)
    return summary


def pairwise_records(
    name: str, comparisons: Sequence[Comparison]
) -> dict[str, Summary]:
    """Count one model's wins, ties and losses against each other model.

    A tie counts half in `win_rate`.
    """
    by_opponent: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        if name in comparison.models:
            by_opponent[_opponent(name, comparison)].append(comparison)
    records = {}
    for opponent, games in by_opponent.items():
        records[opponent] = _record(name, games)
    return records


def mean(values: list[float]) -> float | None:
    """Return the mean, or None of an empty list."""
    return sum(values) / len(values) if values else None


def _opponent(name: str, comparison: Comparison) -> str:
    first, second = comparison.models
    return second if first == name else first


def _record(name: str, comparisons: list[Comparison]) -> Summary:
    winners = Counter(comparison.winner for comparison in comparisons)
    points_of = {name: 1.0, TIE: 0.5}
    points = []
    for comparison in comparisons:
        if comparison.winner:
            value = points_of.get(comparison.winner, 0.0)
            points.append((comparison.question_id, value))
    wins = winners[name]
    ties = winners[TIE]
    unscored = winners[None]
    return {
        "wins": wins,
        "ties": ties,
        "losses": len(comparisons) - wins - ties - unscored,
        "unscored": unscored,
        "win_rate": mean([value for _, value in points]),
        "ci95": _interval(points),
    }


def _versus_base(scored: list[Scored], base: list[Judgment]) -> Summary:
    """Compute the mean difference to base over the turns that have both scores."""
    base_scores = {}
    for judgment in base:
        if judgment.score is not None:
            base_scores[judgment.question_id, judgment.turn] = judgment.score
    differences = []
    for judgment, score in scored:
        turn = (judgment.question_id, judgment.turn)
        if turn in base_scores:
            differences.append((judgment.question_id, score - base_scores[turn]))
    return {
        "difference": mean([difference for _, difference in differences]),
        "ci95": _interval(differences),
    }


def _by_category(scored: list[Scored]) -> dict[str, float]:
    groups = defaultdict(list)
    for judgment, score in scored:
        groups[judgment.category].append(score)
    means = {}
    for category, scores in sorted(groups.items()):
        means[category] = sum(scores) / len(scores)
    return means


def _interval(values: Sequence[QuestionValue]) -> list[float] | None:
    """Compute the 95 % percentile bootstrap interval of the mean.

    Whole questions are resampled, because the turns of a question are not independent.
    """
    by_question = defaultdict(list)
    for question_id, value in values:
        by_question[question_id].append(value)
    if not by_question:
        return None
    import numpy as np

    questions = list(by_question.values())
    sums = np.array([sum(turns) for turns in questions])
    counts = np.array([len(turns) for turns in questions])
    # A fixed seed, so that the same grades have the same interval in every report.
    rng = np.random.default_rng(0)
    size = (_RESAMPLES, len(questions))
    drawn = rng.integers(0, len(questions), size)
    # Questions count by their scored turns, as a turn may have no score.
    drawn_sums = sums[drawn].sum(axis=1)
    drawn_counts = counts[drawn].sum(axis=1)
    means = drawn_sums / drawn_counts
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(low), float(high)]
