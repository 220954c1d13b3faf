"""Which of several trained models is best on the same held-out pairs, told on pairs that did not choose it."""

import hashlib
from dataclasses import dataclass

from bezoar_ray.stats import as_percent, holm, paired_p, wilson

LEVEL = 0.05  # of all paired tests together


@dataclass(frozen=True)
class Half:
    """How a trial does on one half of the pairs."""

    right: list[bool]

    @property
    def share(self) -> float:
        """Share of the pairs that are right."""
        return sum(self.right) / len(self.right)

    def __str__(self) -> str:
        return as_percent(self.share, wilson(sum(self.right), len(self.right)))


@dataclass(frozen=True)
class Choice:
    """Trials, the best on the selecting half first; each half's results are in the same order of pairs."""

    selecting: dict[str, Half]
    reporting: dict[str, Half]

    @property
    def best(self) -> str:
        """The trial with most pairs of the selecting half right; of equals the first."""
        return next(iter(self.selecting))

    def p_values(self) -> dict[str, float]:
        """Of the paired tests between the best trial and each other one, on the reporting half.

        They are corrected for the number of trials.
        """
        best = self.reporting[self.best]
        return holm(
            {
                name: paired_p(best.right, half.right)
                for name, half in self.reporting.items()
                if name != self.best
            }
        )


def choose(trials: dict[str, dict[str, bool]]) -> Choice | None:
    """Choose by half of the pairs that all trials have in common.

    Args:
        trials: by name, whether each pair is right, by the pair's id.

    Returns:
        None where there is no trial, or a half has no pairs.
    """
    common = sorted(set.intersection(*map(set, trials.values()))) if trials else []
    selecting, reporting = (
        [id for id in common if _selects(id) == half] for half in (True, False)
    )
    if not (selecting and reporting):
        return None
    halves = {
        name: Half([right[id] for id in selecting]) for name, right in trials.items()
    }
    order = sorted(halves, key=lambda name: -halves[name].share)
    return Choice(
        {name: halves[name] for name in order},
        {name: Half([trials[name][id] for id in reporting]) for name in order},
    )


def _selects(id: str) -> bool:
    """Whether a pair is in the selecting half: the same for whichever trials are compared."""
    return hashlib.sha256(id.encode()).digest()[0] % 2 == 0


def verdict(choice: Choice) -> list[str]:
    """What can be said of the best trial: how good it is, and which of the others it can be told apart from."""
    half, pairs = (
        choice.reporting[choice.best],
        len(choice.selecting[choice.best].right),
    )
    said = [
        f"{choice.best} is best on the {pairs} held-out pairs that select; of the {len(half.right)} others it has "
        f"{half} right"
    ]
    p_values = choice.p_values()
    apart = {name: p for name, p in p_values.items() if p < LEVEL}
    better = [name for name in apart if half.share > choice.reporting[name].share]
    for what, names in (
        ("not distinguishable from", [name for name in p_values if name not in apart]),
        ("better than", better),
        ("worse than", [name for name in apart if name not in better]),
    ):
        if names:
            listed = "; ".join(f"{name} (p = {p_values[name]:.2g})" for name in names)
            said.append(f"by these others, {choice.best} is {what} {listed}")
    return said
