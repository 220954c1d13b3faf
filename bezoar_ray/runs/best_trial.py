"""Choose the best of several trained models, and report how good it is without bias.

The best of many trials looks better than it is on the pairs that chose it. So half of
the held-out pairs choose, and the other half report.
"""

import hashlib
from dataclasses import dataclass

from bezoar_ray.stats import as_percent, holm, paired_p, wilson

LEVEL = 0.05
"""The significance level of all paired tests together."""


@dataclass(frozen=True)
class Half:
    """The results of a trial on one half of the pairs."""

    right: list[bool]

    @property
    def share(self) -> float:
        """Share of the pairs that are right."""
        return sum(self.right) / len(self.right)

    def __str__(self) -> str:
        interval = wilson(sum(self.right), len(self.right))
        return as_percent(self.share, interval)


@dataclass(frozen=True)
class Choice:
    """The results of all trials on both halves.

    The best trial on the selecting half comes first. All trials of a half have their
    results in the same order of pairs.
    """

    selecting: dict[str, Half]
    reporting: dict[str, Half]

    @property
    def best(self) -> str:
        """The first of the trials with most right pairs in the selecting half."""
        return next(iter(self.selecting))

    def p_values(self) -> dict[str, float]:
        """Test the best trial against each other one, on the reporting half.

        Returns:
            Paired p-values by trial, corrected by Holm for the number of trials.
        """
        best = self.reporting[self.best]
        uncorrected = {}
        for name, half in self.reporting.items():
            if name != self.best:
                uncorrected[name] = paired_p(best.right, half.right)
        return holm(uncorrected)


def choose(trials: dict[str, dict[str, bool]]) -> Choice | None:
    """Choose the best trial by half of the pairs that all trials have in common.

    Args:
        trials: For each trial by name, whether it gets each pair right, by pair id.

    Returns:
        None if there is no trial, or if one half has no pairs.
    """
    if not trials:
        return None
    # Sorted, so that the order of pairs in a file does not matter.
    common = sorted(set.intersection(*map(set, trials.values())))
    selecting_ids = [id for id in common if _is_selecting(id)]
    reporting_ids = [id for id in common if not _is_selecting(id)]
    if not selecting_ids or not reporting_ids:
        return None
    selecting = _half_by_trial(trials, selecting_ids)
    reporting = _half_by_trial(trials, reporting_ids)
    # Stable: of trials with equal shares, the first in the order
    # of --param is the best.
    order = sorted(trials, key=lambda name: -selecting[name].share)
    return Choice(
        {name: selecting[name] for name in order},
        {name: reporting[name] for name in order},
    )


def _half_by_trial(
    trials: dict[str, dict[str, bool]], ids: list[str]
) -> dict[str, Half]:
    return {
        name: Half([is_right[id] for id in ids]) for name, is_right in trials.items()
    }


def _is_selecting(id: str) -> bool:
    """Whether a pair is in the selecting half, whichever trials are compared."""
    return hashlib.sha256(id.encode()).digest()[0] % 2 == 0


def verdict(choice: Choice) -> list[str]:
    """Describe the best trial: its accuracy, and which others it differs from."""
    best = choice.best
    best_half = choice.reporting[best]
    selecting_count = len(choice.selecting[best].right)
    lines = [
        f"{best} is best on the {selecting_count} held-out pairs that select; "
        f"on the {len(best_half.right)} other pairs, it gets {best_half} right"
    ]
    p_values = choice.p_values()
    not_distinguishable = []
    better = []
    worse = []
    for name, p_value in p_values.items():
        if p_value >= LEVEL:
            not_distinguishable.append(name)
        elif best_half.share > choice.reporting[name].share:
            better.append(name)
        else:
            worse.append(name)
    for relation, names in (
        ("not distinguishable from", not_distinguishable),
        ("better than", better),
        ("worse than", worse),
    ):
        if names:
            listed = "; ".join(f"{name} (p = {p_values[name]:.2g})" for name in names)
            lines.append(f"on these other pairs, {best} is {relation} {listed}")
    return lines
