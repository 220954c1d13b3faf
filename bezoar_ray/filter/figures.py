"""What the filter reports in numbers: the funnel of each scheme, and how good the judges are."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from bezoar_ray.rows import Sample, Verdict

Truth = Callable[[str, str], bool | None]


def funnel(samples: list[Sample]) -> dict[str, Any]:
    """How many rows ended where, and how many each gate took."""
    statuses = Counter(sample.status for sample in samples)
    reasons = Counter(sample.gate for sample in samples if sample.status != "accepted")
    counts = {status: statuses[status] for status in ("accepted", "rejected", "failed")}
    return counts | {"reasons": dict(reasons.most_common())}


def judging(samples: list[Sample], truth: Truth | None) -> dict[str, Any]:
    """By judge: rows rated and not, how far it agrees with the first judge, and precision and recall by `truth`.

    `truth` is asked for rows that the first judge rated; it is given with the judge whose world it belongs to.
    """
    found: dict[str, Any] = {}
    judged = [sample for sample in samples if sample.verdicts]
    for place, verdict in enumerate(judged[0].verdicts if judged else ()):
        own = [(sample, sample.verdicts[place]) for sample in judged]
        rated = [(sample, said) for sample, said in own if said.status != "failed"]
        found[verdict.judge] = {"rated": len(rated), "unrated": len(own) - len(rated)}
        if place:
            found[verdict.judge] |= _agreement(rated)
        elif truth:
            found[verdict.judge] |= _quality(rated, truth)
    return found


def _agreement(rated: list[tuple[Sample, Verdict]]) -> dict[str, float | None]:
    """Over the rows that both judges rated: the share decided alike, Cohen's kappa of the decisions (beyond chance,
    doi 10.1177/001316446002000104), and its form for ratings, weighted by the square of their distance."""
    both = [(first, said) for sample, said in rated if (first := sample.verdicts[0]).status != "failed"]
    decisions = [[verdict.status for verdict in side] for side in zip(*both, strict=True)] or [[], []]
    ratings = [[round(verdict.rating) for verdict in side] for side in zip(*both, strict=True)] or [[], []]
    alike = sum(a == b for a, b in zip(*decisions, strict=True))
    return {
        "agreement": _share(alike, len(both)),
        "kappa": _kappa(*decisions),
        "rating_kappa": _kappa(*ratings, labels=range(1, 6), weights="quadratic"),
    }


def _kappa(first: list[Any], second: list[Any], **how: Any) -> float | None:
    """None where it is not defined: without rows, or where both say the same of all."""
    from sklearn.metrics import cohen_kappa_score

    if len({*first, *second}) < 2:
        return None
    return round(float(cohen_kappa_score(first, second, **how)), 4)


def _quality(rated: list[tuple[Sample, Verdict]], truth: Truth) -> dict[str, Any]:
    """Precision and recall of `accepted` against what is true; rows whose truth nobody knows are left out."""
    known = [
        (said.status == "accepted", right)
        for sample, said in rated
        if (right := truth(sample.task, sample.response)) is not None
    ]
    hits = sum(accepted and right for accepted, right in known)
    return {
        "known": len(known),
        "precision": _share(hits, sum(accepted for accepted, _ in known)),
        "recall": _share(hits, sum(right for _, right in known)),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
