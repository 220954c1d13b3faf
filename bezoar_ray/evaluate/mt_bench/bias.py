"""What to know of a judge before its scores are believed: it stands beside each of them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from bezoar_ray.agreement import rating_kappa, share
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison
from bezoar_ray.evaluate.mt_bench.prompts import TIE
from bezoar_ray.evaluate.mt_bench.scores import mean


def bias(
    judgments: Sequence[Judgment], others: Sequence[Judgment], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    """The part `bias` of one model's scores.

    `judgments` are the first judge's grades of the model, `others` those of further judges, `comparisons` those that
    the model took part in. `flip_rate`: share of the comparisons that name one model in one order and the other in the
    other (the paper's position bias). `longer_wins`: share of the decided ones that the longer answer has won, where
    lengths differ. `by_turn`: mean grade. `judges`: by further judge, its mean, and kappa of the grades (weighted by
    the square of their distance) with the first one's.
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
        "judges": _judges(judgments, others),
    }


def _by_turn(judgments: Sequence[Judgment]) -> dict[int, float]:
    turns = defaultdict(list)
    for judgment in judgments:
        if judgment.score is not None:
            turns[judgment.turn].append(judgment.score)
    return {turn: mean(scores) for turn, scores in sorted(turns.items())}


def _judges(judgments: Sequence[Judgment], others: Sequence[Judgment]) -> dict[str, Any]:
    first = {(j.question_id, j.turn): j.score for j in judgments if j.score is not None}
    by_judge = defaultdict(dict)
    for other in others:
        if other.score is not None:
            by_judge[other.judge][other.question_id, other.turn] = other.score
    return {judge: _beside(first, scores) for judge, scores in by_judge.items()}


def _beside(first: dict[Any, float], scores: dict[Any, float]) -> dict[str, Any]:
    both = [turn for turn in scores if turn in first]
    mine, theirs = ([round(said[turn]) for turn in both] for said in (first, scores))
    agreed = rating_kappa(mine, theirs, range(1, 11))
    return {"score": mean(list(scores.values())), "rating_kappa": agreed, "beside": len(both)}
