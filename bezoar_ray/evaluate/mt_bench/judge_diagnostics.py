"""What to know of a judge before its scores are believed: it stands beside each of them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from bezoar_ray.evaluate.mt_bench.judge_prompts import TIE
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison
from bezoar_ray.evaluate.mt_bench.scores import mean
from bezoar_ray.stats import rating_kappa, share

Turn = tuple[int | str, int]
"""A question and its turn."""
Match = tuple[int | str, int, frozenset[str]]
"""The same, and the two models that are compared."""
Said = TypeVar("Said", Judgment, Comparison)
Of = TypeVar("Of")
What = TypeVar("What")


def bias(
    judgments: Sequence[Judgment],
    others: Sequence[Judgment],
    comparisons: Sequence[Comparison],
    other_comparisons: Sequence[Comparison] = (),
) -> dict[str, object]:
    """The part `bias` of one model's scores.

    `judgments` are the first judge's grades of the model, `others` those of further judges, `comparisons` those that
    the model took part in, `other_comparisons` those of further judges.
    `flip_rate`: share of the comparisons that name one model in one order and the other in the
    other (the paper's position bias). `longer_wins`: share of the decided ones that the longer answer has won, where
    lengths differ. `by_turn`: mean grade. `judges`: by further judge, its mean, and kappa of the grades (weighted by
    the square of their distance) with the first one's, and how many of its verdicts could not be read; and the share of
    comparisons whose winner is the first one's.
    """
    read = [c for c in comparisons if c.winner]
    decided = [c for c in read if c.winner != TIE and c.words[0] != c.words[1]]
    longer = sum(c.winner == c.models[c.words[1] > c.words[0]] for c in decided)
    return {
        "flip_rate": share(sum(c.flipped for c in read), len(read)),
        "compared": len(read),
        "longer_wins": share(longer, len(decided)),
        "decided": len(decided),
        "by_turn": _by_turn(judgments),
        "judges": _judges(judgments, others, comparisons, other_comparisons),
    }


def _by_turn(judgments: Sequence[Judgment]) -> dict[int, float]:
    turns = defaultdict(list)
    for judgment in judgments:
        if judgment.score is not None:
            turns[judgment.turn].append(judgment.score)
    return {turn: sum(scores) / len(scores) for turn, scores in sorted(turns.items())}


def _judges(
    judgments: Sequence[Judgment],
    others: Sequence[Judgment],
    comparisons: Sequence[Comparison],
    other_comparisons: Sequence[Comparison],
) -> dict[str, dict[str, object]]:
    grades, theirs = _by_judge(judgments, _graded), _by_judge(others, _graded)
    won, their_won = (
        _by_judge(comparisons, _decided),
        _by_judge(other_comparisons, _decided),
    )
    (first,) = grades.values() or [{}]
    (first_won,) = won.values() or [{}]
    return {
        judge: _beside(first, theirs.get(judge, {}))
        | {"unscored": sum(one.judge == judge and one.score is None for one in others)}
        | _alike(first_won, their_won.get(judge, {}))
        for judge in dict.fromkeys(
            [one.judge for one in others] + [one.judge for one in other_comparisons]
        )
    }


def _by_judge(
    found: Sequence[Said], said: Callable[[Said], tuple[Of, What | None]]
) -> dict[str, dict[Of, What]]:
    """What each judge said of what, where it could be read."""
    by_judge: dict[str, dict[Of, What]] = defaultdict(dict)
    for one in found:
        of, what = said(one)
        if what is not None:
            by_judge[one.judge][of] = what
    return by_judge


def _graded(judgment: Judgment) -> tuple[Turn, float | None]:
    return (judgment.question_id, judgment.turn), judgment.score


def _decided(comparison: Comparison) -> tuple[Match, str | None]:
    return (
        comparison.question_id,
        comparison.turn,
        frozenset(comparison.models),
    ), comparison.winner


def _alike(first: dict[Match, str], winners: dict[Match, str]) -> dict[str, object]:
    both = [game for game in winners if game in first]
    return {
        "same_winner": share(
            sum(winners[game] == first[game] for game in both), len(both)
        ),
        "games": len(both),
    }


def _beside(first: dict[Turn, float], scores: dict[Turn, float]) -> dict[str, object]:
    both = [turn for turn in scores if turn in first]
    mine, theirs = ([round(said[turn]) for turn in both] for said in (first, scores))
    agreed = rating_kappa(mine, theirs, range(1, 11))
    return {
        "score": mean(list(scores.values())),
        "rating_kappa": agreed,
        "beside": len(both),
    }
