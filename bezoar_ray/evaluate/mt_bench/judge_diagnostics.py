"""What to know of a judge before its scores are believed: it stands beside each of them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from bezoar_ray.evaluate.mt_bench.judge_prompts import TIE
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison
from bezoar_ray.evaluate.mt_bench.scores import mean
from bezoar_ray.stats import rating_kappa, share


def bias(
    judgments: Sequence[Judgment],
    others: Sequence[Judgment],
    comparisons: Sequence[Comparison],
    other_comparisons: Sequence[Comparison] = (),
) -> dict[str, Any]:
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
    return {turn: mean(scores) for turn, scores in sorted(turns.items())}


def _judges(
    judgments: Sequence[Judgment],
    others: Sequence[Judgment],
    comparisons: Sequence[Comparison],
    other_comparisons: Sequence[Comparison],
) -> dict[str, Any]:
    grades, theirs = _by_judge(judgments, _graded), _by_judge(others, _graded)
    won, their_won = _by_judge(comparisons, _decided), _by_judge(other_comparisons, _decided)
    (first,) = grades.values() or [{}]
    (first_won,) = won.values() or [{}]
    return {
        judge: _beside(first, theirs.get(judge, {}))
        | {"unscored": sum(one.judge == judge and one.score is None for one in others)}
        | _alike(first_won, their_won.get(judge, {}))
        for judge in dict.fromkeys(one.judge for one in (*others, *other_comparisons))
    }


def _by_judge(found: Sequence[Any], said: Callable[[Any], tuple[Any, Any]]) -> dict[str, dict[Any, Any]]:
    """What each judge said of what, where it could be read."""
    by_judge: dict[str, dict[Any, Any]] = defaultdict(dict)
    for one in found:
        of, what = said(one)
        if what is not None:
            by_judge[one.judge][of] = what
    return by_judge


def _graded(judgment: Judgment) -> tuple[Any, float | None]:
    return (judgment.question_id, judgment.turn), judgment.score


def _decided(comparison: Comparison) -> tuple[Any, str | None]:
    return (comparison.question_id, comparison.turn, frozenset(comparison.models)), comparison.winner


def _alike(first: dict[Any, str], winners: dict[Any, str]) -> dict[str, Any]:
    both = [game for game in winners if game in first]
    return {"same_winner": share(sum(winners[game] == first[game] for game in both), len(both)), "games": len(both)}


def _beside(first: dict[Any, float], scores: dict[Any, float]) -> dict[str, Any]:
    both = [turn for turn in scores if turn in first]
    mine, theirs = ([round(said[turn]) for turn in both] for said in (first, scores))
    agreed = rating_kappa(mine, theirs, range(1, 11))
    return {"score": mean(list(scores.values())), "rating_kappa": agreed, "beside": len(both)}
