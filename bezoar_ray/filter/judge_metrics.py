"""What the filter reports in numbers: the funnel of each scheme, and how good the judges are."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.stats import kappa, rating_kappa, share

Truth = Callable[[str, str], bool | None]

_ENDS = ("accepted", "rejected", "failed")


class FilterMetrics:
    """Counts samples as they end; it keeps none of them.

    `truth` is asked for rows that the first judge rated; it is given with the judge whose world it belongs to.
    """

    def __init__(self, schemes: Iterable[str], truth: Truth | None):
        self._truth = truth
        self._ends: Counter[tuple[str, str]] = Counter()  # scheme and status
        self._reasons = {scheme: Counter[str]() for scheme in schemes}
        self._judges: list[str] = []
        self._said: Counter[tuple[int, str]] = (
            Counter()
        )  # place of the judge, and status
        self._known: Counter[tuple[bool, bool]] = (
            Counter()
        )  # accepted by the first judge, and right
        self._beside: Counter[tuple[int, str, str, int, int]] = (
            Counter()
        )  # place, two statuses and two ratings

    def add(self, sample: Sample) -> None:
        """One sample, at its end."""
        self._ends[sample.scheme, sample.status] += 1
        if sample.status != "accepted":
            self._reasons[sample.scheme][sample.gate] += 1
        if not sample.verdicts:
            return
        self._judges = self._judges or [verdict.judge for verdict in sample.verdicts]
        for place, verdict in enumerate(sample.verdicts):
            self._said[place, verdict.status] += 1
            self._compare(place, sample.verdicts[0], verdict)
        self._check(sample)

    def data(self) -> dict[str, dict[str, object]]:
        """By scheme: how many rows ended where, and how many each gate took."""
        return {
            scheme: {status: self._ends[scheme, status] for status in _ENDS}
            | {"reasons": dict(reasons.most_common())}
            for scheme, reasons in self._reasons.items()
        }

    def reasons(self) -> Counter[str]:
        """How many rows each gate took, over all schemes."""
        return sum(self._reasons.values(), Counter())

    @property
    def accepted(self) -> int:
        """Accepted rows of all schemes."""
        return sum(
            count for (_, status), count in self._ends.items() if status == "accepted"
        )

    def judges(self) -> dict[str, dict[str, object]]:
        """By judge: rows rated and not, how far it agrees with the first judge, and precision and recall by truth."""
        found: dict[str, Any] = {}
        for place, judge in enumerate(self._judges):
            rated = self._said[place, "accepted"] + self._said[place, "rejected"]
            found[judge] = {"rated": rated, "unrated": self._said[place, "failed"]}
            if place:
                found[judge] |= self._agreement(place)
            elif self._truth:
                found[judge] |= self._quality()
        return found

    def _compare(self, place: int, first: Verdict, verdict: Verdict) -> None:
        if not place or "failed" in (first.status, verdict.status):
            return
        if first.rating is not None and verdict.rating is not None:
            self._beside[
                place,
                first.status,
                verdict.status,
                round(first.rating),
                round(verdict.rating),
            ] += 1

    def _check(self, sample: Sample) -> None:
        first = sample.verdicts[0]
        if self._truth and first.status != "failed":
            right = self._truth(sample.task, sample.response)
            if right is not None:
                self._known[first.status == "accepted", right] += 1

    def _agreement(self, place: int) -> dict[str, float | None]:
        """Over the rows that both judges rated: the share decided alike, and kappa of the decisions and the ratings."""
        both = {
            key[1:]: count for key, count in self._beside.items() if key[0] == place
        }
        alike = sum(
            count for (first, second, *_), count in both.items() if first == second
        )
        counts = list(both.values())
        return {
            "agreement": share(alike, sum(counts)),
            "kappa": kappa([key[0] for key in both], [key[1] for key in both], counts),
            "rating_kappa": rating_kappa(
                [key[2] for key in both], [key[3] for key in both], range(1, 6), counts
            ),
        }

    def _quality(self) -> dict[str, float | None]:
        """Precision and recall of `accepted` against what is true; rows whose truth nobody knows are left out."""
        hits = self._known[True, True]
        return {
            "known": self._known.total(),
            "precision": share(hits, hits + self._known[True, False]),
            "recall": share(hits, hits + self._known[False, True]),
        }
