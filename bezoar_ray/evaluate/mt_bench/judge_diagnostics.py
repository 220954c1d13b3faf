"""Diagnostics of the judge, reported beside each of its scores."""

from collections.abc import Sequence

from bezoar_ray.evaluate.mt_bench.judge_prompts import TIE
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison
from bezoar_ray.evaluate.mt_bench.scores import mean
from bezoar_ray.stats import rating_kappa, share

Turn = tuple[int | str, int]
"""A question's id, and the turn."""
Match = tuple[int | str, int, frozenset[str]]
"""A question's id, the turn, and the two models that are compared."""


def judge_bias(
    judgments: Sequence[Judgment],
    others: Sequence[Judgment],
    comparisons: Sequence[Comparison],
    other_comparisons: Sequence[Comparison] = (),
) -> dict[str, object]:
    """Compute `bias` of one model's scores in summary.json.

    Args:
        judgments: the first judge's grades of the model.
        others: the grades of the model by the other judges.
        comparisons: the first judge's comparisons that include the model.
        other_comparisons: such comparisons by the other judges.

    Returns:
        `flip_rate`: share of the comparisons whose verdict names one model in one order
        and the other model in the other order (position bias, arXiv 2306.05685).
        `longer_wins`: share of the comparisons with a winner that the longer answer
        won; answers of equal length are left out.
        `by_turn`: mean grade of each turn.
        `judges`: each other judge's mean grade and its agreement with the first judge.
        `compared` and `decided`: how many comparisons the two shares are over.
    """
    read = [comparison for comparison in comparisons if comparison.winner]
    flipped = sum(comparison.flipped for comparison in read)
    decided = []
    for comparison in read:
        first_words, second_words = comparison.words
        if comparison.winner != TIE and first_words != second_words:
            decided.append(comparison)
    longer_wins = sum(
        comparison.winner == _longer_answer(comparison) for comparison in decided
    )
    return {
        "flip_rate": share(flipped, len(read)),
        "compared": len(read),
        "longer_wins": share(longer_wins, len(decided)),
        "decided": len(decided),
        "by_turn": _mean_by_turn(judgments),
        "judges": _other_judges(judgments, others, comparisons, other_comparisons),
    }


def _longer_answer(comparison: Comparison) -> str:
    """Return the model with the longer answer."""
    first, second = comparison.models
    first_words, second_words = comparison.words
    return second if second_words > first_words else first


def _mean_by_turn(judgments: Sequence[Judgment]) -> dict[int, float]:
    turns: dict[int, list[float]] = {}
    for judgment in judgments:
        if judgment.score is not None:
            turns.setdefault(judgment.turn, []).append(judgment.score)
    means = {}
    for turn, scores in sorted(turns.items()):
        means[turn] = sum(scores) / len(scores)
    return means


def _other_judges(
    judgments: Sequence[Judgment],
    others: Sequence[Judgment],
    comparisons: Sequence[Comparison],
    other_comparisons: Sequence[Comparison],
) -> dict[str, dict[str, object]]:
    """Compare each other judge with the first one."""
    first_grades = _grades(judgments)
    first_winners = _winners(comparisons)
    judges = dict.fromkeys(judgment.judge for judgment in others)
    judges |= dict.fromkeys(comparison.judge for comparison in other_comparisons)
    agreements = {}
    for judge in judges:
        judge_grades = [one for one in others if one.judge == judge]
        judge_games = [one for one in other_comparisons if one.judge == judge]
        unscored = sum(judgment.score is None for judgment in judge_grades)
        agreements[judge] = (
            _grade_agreement(first_grades, _grades(judge_grades))
            | {"unscored": unscored}
            | _winner_agreement(first_winners, _winners(judge_games))
        )
    return agreements


def _grades(judgments: Sequence[Judgment]) -> dict[Turn, float]:
    """Map each graded turn to its grade."""
    grades = {}
    for judgment in judgments:
        if judgment.score is not None:
            grades[judgment.question_id, judgment.turn] = judgment.score
    return grades


def _winners(comparisons: Sequence[Comparison]) -> dict[Match, str]:
    """Map each match with a verdict to its winner, or to `tie`."""
    winners = {}
    for comparison in comparisons:
        if comparison.winner is not None:
            # Published files may name the same two models in the other order.
            models = frozenset(comparison.models)
            match = (comparison.question_id, comparison.turn, models)
            winners[match] = comparison.winner
    return winners


def _grade_agreement(
    first: dict[Turn, float], grades: dict[Turn, float]
) -> dict[str, object]:
    """Compute a judge's mean, and its kappa with the first judge.

    The weight of a disagreement is the square of the distance between the grades.
    """
    common = [turn for turn in grades if turn in first]
    first_ratings = [round(first[turn]) for turn in common]
    ratings = [round(grades[turn]) for turn in common]
    return {
        "score": mean(list(grades.values())),
        "rating_kappa": rating_kappa(first_ratings, ratings, range(1, 11)),
        "beside": len(common),
    }


def _winner_agreement(
    first: dict[Match, str], winners: dict[Match, str]
) -> dict[str, object]:
    """Compute how often a judge names the same winner as the first judge."""
    common = [match for match in winners if match in first]
    same = sum(winners[match] == first[match] for match in common)
    return {
        "same_winner": share(same, len(common)),
        "games": len(common),
    }
