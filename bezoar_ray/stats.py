"""How sure a share of right answers is, and whether two models' shares differ."""


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
