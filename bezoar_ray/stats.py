"""Statistics: intervals of shares, tests of two models, agreement of two raters."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

Label = TypeVar("Label", str, bool, int)


def wilson(right: int, count: int) -> list[float] | None:
    """The 95 % interval of a share, by Wilson's score.

    doi 10.1080/01621459.1927.10502953.

    Args:
        right: number of successes.
        count: number of trials.

    Returns:
        The lower and the upper bound; None without trials.
    """
    from scipy.stats import binomtest

    if not count:
        return None
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return [round(float(interval.low), 4), round(float(interval.high), 4)]


def mean_interval(count: int, total: float, squares: float) -> list[float] | None:
    """The 95 % interval of a mean, by Student's t distribution.

    doi 10.1093/biomet/6.1.1.

    Args:
        count: number of values.
        total: their sum.
        squares: the sum of their squares.

    Returns:
        The lower and the upper bound; None for less than two values.
    """
    from scipy.stats import t

    if count < 2:
        return None
    mean = total / count
    # Rounding may make the difference of two large sums negative.
    variance = max(0.0, squares - count * mean**2) / (count - 1)
    half_width = float(t.ppf(0.975, count - 1)) * (variance / count) ** 0.5
    return [round(mean - half_width, 4), round(mean + half_width, 4)]


def as_percent(share: float, ci95: list[float] | None) -> str:
    """A share in percent, with its interval if it has one."""
    text = f"{100 * share:.1f} %"
    if ci95:
        low, high = ci95
        text += f" ({100 * low:.1f} to {100 * high:.1f})"
    return text


def paired_p(first: list[bool], second: list[bool]) -> float:
    """Two-sided p-value of two models on the same items, by McNemar's exact test.

    doi 10.1007/BF02295996. Only items that one model alone gets right tell the models
    apart.

    Args:
        first: whether the first model gets each item right.
        second: the same for the second model.

    Returns:
        The p-value; 1 if no item tells the models apart.
    """
    from scipy.stats import binomtest

    first_alone = sum(a and not b for a, b in zip(first, second, strict=True))
    second_alone = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = first_alone + second_alone
    if not discordant:
        return 1.0
    return float(binomtest(first_alone, discordant).pvalue)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Correct the p-values of several tests for their number, by Holm's method.

    Scand. J. Statist. 6, 1979, 65-70. If no difference is real, the chance that any of
    the corrected p-values is below 0.05 is at most 5 %.
    """
    ascending = sorted(p_values, key=lambda name: p_values[name])
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(ascending):
        tests_left = len(p_values) - rank
        p_value = min(1.0, tests_left * p_values[name])
        # A corrected p-value is never below that of a smaller one.
        highest = max(highest, p_value)
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def kappa(
    first: list[Label],
    second: list[Label],
    counts: Sequence[float] | None = None,
) -> float | None:
    """Cohen's kappa of two raters' decisions: their agreement beyond chance.

    doi 10.1177/001316446002000104.

    Args:
        first: decisions of the first rater.
        second: decisions of the second rater on the same items.
        counts: how often each pair of decisions occurs; once by default.

    Returns:
        None where kappa is not defined: without items, or if both raters give all items
        the
        same label.
    """
    return _kappa(first, second, counts)


def kappa_ci95(table: list[list[float]], count: int) -> list[float] | None:
    """The 95 % interval of Cohen's kappa of two raters who each say yes or no.

    It is the parametric bootstrap's: 2,000 tables of so many items are drawn. Half an
    item is added to each cell, as in Jeffreys' prior: a few items without a
    disagreement do not prove that there never is one.

    Args:
        table: shares of the items, by the first rater's label and then the second's.
        count: number of items.

    Returns:
        The lower and the upper bound; None where kappa is not defined, as for `kappa`.
    """
    import numpy as np

    shares = np.array(table, dtype=float)
    both_labels = shares.sum(axis=0).all() or shares.sum(axis=1).all()
    # The tables of a single item have a single label.
    if count < 2 or not both_labels:
        return None
    cells = count * shares.ravel() / shares.sum() + 0.5
    draws = np.random.default_rng(0).multinomial(count, cells / cells.sum(), size=2000)
    tables = draws.reshape(-1, 2, 2) / count
    agreement = tables[:, 0, 0] + tables[:, 1, 1]
    by_chance = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1)
    # A drawn table with a single label has no kappa.
    defined = by_chance < 1
    kappas = (agreement[defined] - by_chance[defined]) / (1 - by_chance[defined])
    low, high = np.percentile(kappas, [2.5, 97.5])
    return [round(float(low), 4), round(float(high), 4)]


def rating_kappa(
    first: list[int],
    second: list[int],
    scale: Iterable[int],
    counts: list[int] | None = None,
) -> float | None:
    """Cohen's kappa of ratings, weighted by the square of their distance on the scale.

    Args:
        first: ratings of the first rater.
        second: ratings of the second rater on the same items.
        scale: all ratings that are possible.
        counts: how often each pair of ratings occurs; once by default.

    Returns:
        None where kappa is not defined, as for `kappa`.
    """
    return _kappa(first, second, counts, labels=list(scale), weights="quadratic")


def share(part: int, whole: int) -> float | None:
    """The share that a part has in a whole; None if the whole is 0."""
    return round(part / whole, 4) if whole else None


def _kappa(
    first: list[Label],
    second: list[Label],
    counts: Sequence[float] | None,
    **options: object,
) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    labels = {*first, *second}
    # Of a single label, sklearn's kappa is NaN.
    if len(labels) < 2:
        return None
    value = cohen_kappa_score(first, second, sample_weight=counts, **options)
    return round(float(value), 4)
