"""Bias in the rows: the groups of people that they mention, before and after the filter.

All counts come from one pass over the rows, and no row stays in memory.
"""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import xxhash

from bezoar_ray.data.group_terms import Group, GroupTerms, split_words
from bezoar_ray.data.schema import Sample
from bezoar_ray.filter.gates import is_refusal
from bezoar_ray.generate.elimination import stop_words
from bezoar_ray.stats import mean_interval, wilson

NO_GROUP = Group("", "no group")
"""Stands for the rows that mention no group, with which the others are compared."""
_PRONOUNS = {
    "she": {"she", "her", "hers", "herself"},
    "he": {"he", "him", "his", "himself"},
    "they": {"they", "them", "their", "theirs", "themself", "themselves"},
}
# Words are counted in so many bins, by hash, so that memory is bounded.
_BINS = 2**14


@dataclass(frozen=True)
class IntervalEstimate:
    """A share or a mean, with its 95 % interval."""

    value: float | None
    ci95: list[float] | None
    count: int
    """Rows that it is taken over."""


@dataclass(frozen=True)
class GroupRow:
    """The rows that mention one group, of all schemes."""

    group: Group
    rows: int
    before: IntervalEstimate
    """Share of the group among all generated rows."""
    after: IntervalEstimate
    """Share of the group among the accepted rows."""
    refused: IntervalEstimate
    """Share of its rows whose answer is a refusal."""
    rejected: IntervalEstimate
    """Share of its rows that the filter rejected, or that failed."""
    rating: IntervalEstimate
    """Mean rating by the judges."""


@dataclass(frozen=True)
class SchemeRow:
    """The rows of one scheme: generated rows before the filter, accepted ones after."""

    scheme: str
    mentions_before: IntervalEstimate
    """Share of the rows that mention any group."""
    mentions_after: IntervalEstimate
    groups: dict[Group, tuple[IntervalEstimate, IntervalEstimate]]
    """Share of each group that the scheme mentions, before and after."""
    instruction_before: IntervalEstimate
    """Mean length in words."""
    instruction_after: IntervalEstimate
    response_before: IntervalEstimate
    response_after: IntervalEstimate
    entropy_before: float | None
    """Entropy of the content words of instructions, in bits."""
    entropy_after: float | None


@dataclass(frozen=True)
class OccupationRow:
    """Rows that mention an occupation, by the pronouns in them."""

    occupation: str
    before: dict[str, int]
    after: dict[str, int]


@dataclass(frozen=True)
class GroupTable:
    """The bias in the rows of a run."""

    source: str
    """Where the word list comes from."""
    license: str
    groups: list[GroupRow]
    """The groups that some row mentions, and last the rows without any."""
    schemes: list[SchemeRow]
    occupations: list[OccupationRow]
    """The occupations that stand beside a pronoun in some row, the most frequent
    first."""


@dataclass
class _Sums:
    """Number, sum and sum of squares of some values."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value**2

    @property
    def estimate(self) -> IntervalEstimate:
        mean = self.total / self.count if self.count else None
        interval = mean_interval(self.count, self.total, self.squares)
        return IntervalEstimate(mean, interval, self.count)


@dataclass
class _SchemeCounts:
    """The rows of one scheme, before or after the filter."""

    rows: int = 0
    with_group: int = 0
    groups: Counter[Group] = field(default_factory=Counter)
    instruction: _Sums = field(default_factory=_Sums)
    response: _Sums = field(default_factory=_Sums)
    words: "array[int]" = field(default_factory=lambda: array("Q", bytes(8 * _BINS)))
    """Content words of instructions, by bin."""

    def add(
        self,
        task_words: Sequence[str],
        response_words: Sequence[str],
        groups: set[Group],
    ) -> None:
        self.rows += 1
        self.with_group += bool(groups)
        self.groups.update(groups)
        self.instruction.add(len(task_words))
        self.response.add(len(response_words))
        for word in set(task_words) - stop_words():
            self.words[xxhash.xxh32_intdigest(word.encode()) % _BINS] += 1


class GroupCounts:
    """Counts rows without keeping them.

    Args:
        terms: The words that name groups.
    """

    def __init__(self, terms: GroupTerms):
        self._terms = terms
        self._before: dict[str, _SchemeCounts] = defaultdict(_SchemeCounts)
        self._after: dict[str, _SchemeCounts] = defaultdict(_SchemeCounts)
        self._refused: Counter[Group] = Counter()
        self._ratings: dict[Group, _Sums] = defaultdict(_Sums)
        # By occupation and pronoun.
        self._occupations_before: Counter[tuple[str, str]] = Counter()
        self._occupations_after: Counter[tuple[str, str]] = Counter()

    def add(self, sample: Sample) -> None:
        """Count one row with its final status. A row without a text counts nowhere."""
        if not sample.instruction and not sample.response:
            return
        task_words = split_words(sample.task)
        response_words = split_words(sample.response)
        # The gap keeps a term from beginning in the one and ending in the other.
        words = (*task_words, "", *response_words)
        groups = self._terms.mentions(words)
        is_accepted = sample.status == "accepted"
        self._before[sample.scheme].add(task_words, response_words, groups)
        if is_accepted:
            self._after[sample.scheme].add(task_words, response_words, groups)
        for group in groups or {NO_GROUP}:
            self._refused[group] += is_refusal(sample)
            if any(verdict.rating is not None for verdict in sample.verdicts):
                self._ratings[group].add(sample.rating)
        pairs = list(self._occupation_pairs(words))
        self._occupations_before.update(pairs)
        if is_accepted:
            self._occupations_after.update(pairs)

    def table(self) -> GroupTable:
        """Return what was counted."""
        mentioned = _mentioned(self._before)
        named = [group for group in self._terms.groups if mentioned[group]]
        return GroupTable(
            source=self._terms.source,
            license=self._terms.license,
            groups=[self._group_row(group) for group in [*named, NO_GROUP]],
            schemes=[self._scheme_row(name, named) for name in self._before],
            occupations=self._occupation_rows(),
        )

    def _occupation_pairs(self, words: Sequence[str]) -> Iterator[tuple[str, str]]:
        occupations = self._terms.occupations(words)
        if not occupations:
            return
        for pronoun, forms in _PRONOUNS.items():
            if not forms.isdisjoint(words):
                yield from ((occupation, pronoun) for occupation in occupations)

    def _group_row(self, group: Group) -> GroupRow:
        before = _mentioned(self._before)
        after = _mentioned(self._after)
        rows = before[group]
        return GroupRow(
            group=group,
            rows=rows,
            before=_share(rows, _total_rows(self._before)),
            after=_share(after[group], _total_rows(self._after)),
            refused=_share(self._refused[group], rows),
            rejected=_share(rows - after[group], rows),
            rating=self._ratings[group].estimate,
        )

    def _scheme_row(self, scheme: str, groups: list[Group]) -> SchemeRow:
        before = self._before[scheme]
        after = self._after[scheme]
        shares = {}
        for group in groups:
            if before.groups[group]:
                shares[group] = (
                    _share(before.groups[group], before.rows),
                    _share(after.groups[group], after.rows),
                )
        return SchemeRow(
            scheme=scheme,
            mentions_before=_share(before.with_group, before.rows),
            mentions_after=_share(after.with_group, after.rows),
            groups=shares,
            instruction_before=before.instruction.estimate,
            instruction_after=after.instruction.estimate,
            response_before=before.response.estimate,
            response_after=after.response.estimate,
            entropy_before=_entropy(before.words),
            entropy_after=_entropy(after.words),
        )

    def _occupation_rows(self) -> list[OccupationRow]:
        totals: Counter[str] = Counter()
        for (occupation, _), count in self._occupations_before.items():
            totals[occupation] += count
        rows = []
        for occupation, _ in totals.most_common():
            before = {
                name: self._occupations_before[occupation, name] for name in _PRONOUNS
            }
            after = {
                name: self._occupations_after[occupation, name] for name in _PRONOUNS
            }
            rows.append(OccupationRow(occupation, before, after))
        return rows


def _mentioned(schemes: dict[str, _SchemeCounts]) -> Counter[Group]:
    """Return the rows of all schemes by group, and those without any group."""
    total: Counter[Group] = Counter()
    for counts in schemes.values():
        total.update(counts.groups)
        total[NO_GROUP] += counts.rows - counts.with_group
    return total


def _total_rows(schemes: dict[str, _SchemeCounts]) -> int:
    return sum(counts.rows for counts in schemes.values())


def _share(part: int, whole: int) -> IntervalEstimate:
    value = part / whole if whole else None
    return IntervalEstimate(value, wilson(part, whole), whole)


def _entropy(counts: Iterable[int]) -> float | None:
    """Return the entropy of a distribution in bits; None without any count."""
    positive = [count for count in counts if count]
    total = sum(positive)
    if not total:
        return None
    return -sum(count / total * math.log2(count / total) for count in positive)
