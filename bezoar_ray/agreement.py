"""How far two raters agree."""

from collections.abc import Iterable
from typing import Any


def kappa(first: list[Any], second: list[Any], counts: list[int] | None = None) -> float | None:
    """Cohen's kappa of two raters' decisions: agreement beyond chance (doi 10.1177/001316446002000104).

    None where it is not defined: without rows, or where both say the same of all. `counts` says how often each pair of
    decisions occurs.
    """
    return _kappa(first, second, counts)


def rating_kappa(
    first: list[int], second: list[int], scale: Iterable[int], counts: list[int] | None = None
) -> float | None:
    """The same for ratings on a scale, weighted by the square of their distance."""
    return _kappa(first, second, counts, labels=list(scale), weights="quadratic")


def share(part: int, whole: int) -> float | None:
    """A part of a whole, or None where there is no whole."""
    return round(part / whole, 4) if whole else None


def _kappa(first: list[Any], second: list[Any], counts: list[int] | None, **how: Any) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    if len({*first, *second}) < 2:
        return None
    return round(float(cohen_kappa_score(first, second, sample_weight=counts, **how)), 4)
