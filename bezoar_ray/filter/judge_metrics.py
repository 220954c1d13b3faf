"""Metrics of the filter: where rows end, and the quality of the judges."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.stages import Truth
from bezoar_ray.stats import kappa, rating_kappa, share

_STATUSES = ("accepted", "rejected", "failed")


class _Pair(NamedTuple):
    """The verdicts of the first and a later judge on one row."""

    judge_index: int
    first_status: str
    later_status: str
    first_rating: int
    later_rating: int


class FilterMetrics:
    """Counts samples without keeping them.

    Args:
        schemes: The schemes of the recipe.
        truth: The oracle of the embedded world, given together with its judge. It
            checks the rows that the first judge rated.
    """

    def __init__(self, schemes: Iterable[str], truth: Truth | None):
        self._truth = truth
        self._judges: list[str] = []
        # By scheme and status.
        self._statuses: Counter[tuple[str, str]] = Counter()
        self._reasons = {scheme: Counter[str]() for scheme in schemes}
        # By the index of the judge and the status of its verdict.
        self._verdicts: Counter[tuple[int, str]] = Counter()
        self._pairs: Counter[_Pair] = Counter()
        # By whether the first judge accepts the row, and whether the row is right.
        self._known: Counter[tuple[bool, bool]] = Counter()

    def add(self, sample: Sample) -> None:
        """Count one sample with its final status."""
        self._statuses[sample.scheme, sample.status] += 1
        if sample.status != "accepted":
            self._reasons[sample.scheme][sample.gate] += 1
        if not sample.verdicts:
            return
        if not self._judges:
            self._judges = [verdict.judge for verdict in sample.verdicts]
        first = sample.verdicts[0]
        for judge_index, verdict in enumerate(sample.verdicts):
            self._verdicts[judge_index, verdict.status] += 1
            if judge_index > 0:
                self._count_pair(judge_index, first, verdict)
        self._check_truth(sample)

    def data(self) -> dict[str, dict[str, object]]:
        """Return the rows of each status and of each gate, by scheme."""
        data = {}
        for scheme, reasons in self._reasons.items():
            counts: dict[str, object] = {
                status: self._statuses[scheme, status] for status in _STATUSES
            }
            data[scheme] = counts | {"reasons": dict(reasons.most_common())}
        return data

    def reasons(self) -> Counter[str]:
        """Return the rows that each gate took, over all schemes."""
        return sum(self._reasons.values(), Counter())

    @property
    def accepted(self) -> int:
        """Accepted rows of all schemes."""
        return sum(
            count
            for (_, status), count in self._statuses.items()
            if status == "accepted"
        )

    def judges(self) -> dict[str, dict[str, object]]:
        """Return the metrics of each judge.

        Returns:
            Rows `rated` and `unrated`. Then, for later judges, the agreement with the
            first one; and for the first judge, precision and recall by the truth.
        """
        metrics: dict[str, Any] = {}
        for judge_index, judge in enumerate(self._judges):
            accepted = self._verdicts[judge_index, "accepted"]
            rejected = self._verdicts[judge_index, "rejected"]
            unrated = self._verdicts[judge_index, "failed"]
            metrics[judge] = {"rated": accepted + rejected, "unrated": unrated}
            if judge_index > 0:
                metrics[judge] |= self._agreement(judge_index)
            elif self._truth:
                metrics[judge] |= self._quality()
        return metrics

    def _count_pair(self, judge_index: int, first: Verdict, later: Verdict) -> None:
        """Count the verdicts of the first and a later judge, if both rated the row."""
        if "failed" in (first.status, later.status):
            return
        if first.rating is None or later.rating is None:
            return
        pair = _Pair(
            judge_index,
            first.status,
            later.status,
            # A rating may be a fraction, and kappa compares classes.
            round(first.rating),
            round(later.rating),
        )
        self._pairs[pair] += 1

    def _check_truth(self, sample: Sample) -> None:
        first = sample.verdicts[0]
        if not self._truth or first.status == "failed":
            return
        # The judge rated the text that a person has replaced.
        if sample.person == "edited":
            return
        is_right = self._truth(sample.task, sample.response)
        if is_right is not None:
            self._known[first.status == "accepted", is_right] += 1

    def _agreement(self, judge_index: int) -> dict[str, float | None]:
        """Return the agreement of a later judge with the first one.

        Returns:
            `agreement`: the share of equal decisions among the rows that both rated;
            `kappa` of the decisions and `rating_kappa` of the ratings.
        """
        pairs = [pair for pair in self._pairs if pair.judge_index == judge_index]
        counts = [self._pairs[pair] for pair in pairs]
        equal = sum(
            self._pairs[pair]
            for pair in pairs
            if pair.first_status == pair.later_status
        )
        first_statuses = [pair.first_status for pair in pairs]
        later_statuses = [pair.later_status for pair in pairs]
        first_ratings = [pair.first_rating for pair in pairs]
        later_ratings = [pair.later_rating for pair in pairs]
        return {
            "agreement": share(equal, sum(counts)),
            "kappa": kappa(first_statuses, later_statuses, counts),
            "rating_kappa": rating_kappa(
                first_ratings, later_ratings, range(1, 6), counts
            ),
        }

    def _quality(self) -> dict[str, float | None]:
        """Return precision and recall of `accepted` among rows whose truth is known."""
        hits = self._known[True, True]
        return {
            "known": self._known.total(),
            "precision": share(hits, hits + self._known[True, False]),
            "recall": share(hits, hits + self._known[False, True]),
        }
