"""Statistics: intervals of shares, paired tests of two models, agreement of two raters."""

from collections.abc import Iterable
from typing import TypeVar

Label = TypeVar("Label", str, bool, int)


def wilson(right: int, count: int) -> list[float] | None:
    """The 95 % interval of a share, by Wilson's score (doi 10.1080/01621459.1927.10502953); None of nothing."""
    from scipy.stats import binomtest

    if not count:
        return None
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return [round(float(interval.low), 4), round(float(interval.high), 4)]


def as_percent(share: float, ci95: list[float] | None) -> str:
    """A share and its interval, where it has one, as text."""
    interval = f" ({100 * ci95[0]:.1f} to {100 * ci95[1]:.1f})" if ci95 else ""
    return f"{100 * share:.1f} %{interval}"


def paired_p(first: list[bool], second: list[bool]) -> float:
    """Two-sided p of the same items answered by two models: McNemar's test (doi 10.1007/BF02295996) in its exact form.

    Only items that one of the two alone gets right tell them apart; 1 where there are none.
    """
    from scipy.stats import binomtest

    first_alone = sum(a and not b for a, b in zip(first, second, strict=True))
    second_alone = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = first_alone + second_alone
    return float(binomtest(first_alone, discordant).pvalue) if discordant else 1.0


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """p-values of several tests, corrected for their number by Holm's method (Scand. J. Statist. 6, 1979, 65-70).

    If none of the differences is real, one of them falls below 0.05 in 5 % of all cases at most.
    """
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def kappa(
    first: list[Label], second: list[Label], counts: list[int] | None = None
) -> float | None:
    """Cohen's kappa of two raters' decisions: agreement beyond chance (doi 10.1177/001316446002000104).

    None where it is not defined: without rows, or where both say the same of all. `counts` says how often each pair of
    decisions occurs.
    """
    return _kappa(first, second, counts)


def rating_kappa(
    first: list[int],
    second: list[int],
    scale: Iterable[int],
    counts: list[int] | None = None,
) -> float | None:
    """The same for ratings on a scale, weighted by the square of their distance."""
    return _kappa(first, second, counts, labels=list(scale), weights="quadratic")


def share(part: int, whole: int) -> float | None:
    """A part of a whole, or None where there is no whole."""
    return round(part / whole, 4) if whole else None


def _kappa(
    first: list[Label], second: list[Label], counts: list[int] | None, **how: object
) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    if len({*first, *second}) < 2:
        return None
    return round(
        float(cohen_kappa_score(first, second, sample_weight=counts, **how)), 4
    )
