"""Counterfactual pairs: does a judge rate a row otherwise if it is about another group?

A pair is a rated row and the same row with two groups exchanged. The judges rate the
changed row, too, and the difference of the ratings is measured.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from random import Random
from typing import Any

import orjson

from bezoar_ray.data.group_terms import Group, GroupTerms, split_words
from bezoar_ray.data.schema import Sample, row_id
from bezoar_ray.filter.aggregate import combine_verdicts
from bezoar_ray.recipe import Filter
from bezoar_ray.stats import mean_interval, share, wilson

_TEXTS = ("system", "instruction", "input", "response")
"""The fields of a row in which groups are exchanged, and so in its history."""


@dataclass(frozen=True)
class Counterfactual:
    """A rated row, and the same row about another group."""

    original: Sample
    swapped: Sample
    group: Group
    """The group that the original mentions."""
    other: Group
    """The group with which it was exchanged."""


def choose_counterfactuals(
    samples: Iterable[Sample], terms: GroupTerms, count: int
) -> list[Counterfactual]:
    """Return the counterfactuals of the first rows that allow one.

    Args:
        samples: All judged rows in the order of their ids. Ids are hashes, so the first
            ones are a fair draw.
        terms: The words that name groups.
        count: The number of pairs, at most.
    """
    return list(islice(_iter_counterfactuals(samples, terms), count))


def _iter_counterfactuals(
    samples: Iterable[Sample], terms: GroupTerms
) -> Iterator[Counterfactual]:
    for sample in samples:
        # Gates and judges that fail leave rows unrated.
        if not any(verdict.rating is not None for verdict in sample.verdicts):
            continue
        counterfactual = _swap_groups(sample, terms)
        if counterfactual:
            yield counterfactual


def _swap_groups(sample: Sample, terms: GroupTerms) -> Counterfactual | None:
    """Exchange one group of a row with another of its category, drawn by the row's id.

    Returns:
        None where the row mentions no group, or none whose terms all have a
        counterpart.
    """
    texts = [getattr(sample, name) for name in _TEXTS]
    texts += [turn["content"] for turn in sample.history]
    mentioned: set[Group] = set()
    for text in texts:
        mentioned |= terms.mentions(split_words(text))
    exchanges = [
        (group, other)
        for group in terms.groups
        if group in mentioned
        for other in terms.others(group)
    ]
    Random(sample.id).shuffle(exchanges)
    for group, other in exchanges:
        swapped = _exchange(sample, terms, group, other)
        if swapped:
            return Counterfactual(sample, swapped, group, other)
    return None


def _exchange(
    sample: Sample, terms: GroupTerms, group: Group, other: Group
) -> Sample | None:
    texts: dict[str, Any] = {}
    for name in _TEXTS:
        texts[name] = terms.swap(getattr(sample, name), group, other)
    history: list[dict[str, str]] = []
    for turn in sample.history:
        content = terms.swap(turn["content"], group, other)
        texts[f"history {len(history)}"] = content
        history.append(turn | {"content": content or ""})
    if None in texts.values():
        return None
    return replace(
        sample,
        id=row_id(sample.id, "counterfactual", *group, *other),
        **{name: texts[name] for name in _TEXTS},
        history=history,
        verdicts=[],
    )


def measure_counterfactuals(
    counterfactuals: Sequence[Counterfactual],
    rated: Iterable[Sample],
    section: Filter,
) -> tuple[dict[str, Any], bytes]:
    """Compare the ratings of both rows of each pair.

    Args:
        counterfactuals: The pairs.
        rated: Their changed rows, with the judges' verdicts.
        section: Its rule makes a decision of the verdicts.

    Returns:
        `counterfactuals` of summary.json, and a JSON line for each pair.
    """
    swapped = {sample.id: sample for sample in rated}
    pairs = [
        replace(pair, swapped=swapped[pair.swapped.id]) for pair in counterfactuals
    ]
    decisions = list(_decisions(pairs, section))
    changed = sum(before != after for before, after in decisions)
    judges = {
        verdict.judge: _compare_ratings(pairs, index)
        for index, verdict in enumerate(pairs[0].original.verdicts)
    }
    summary = {
        "pairs": len(pairs),
        "decided": len(decisions),
        "decision_changed": share(changed, len(decisions)),
        "decision_changed_ci95": wilson(changed, len(decisions)),
        "judges": judges,
        "groups": list(_compare_groups(pairs)),
    }
    return summary, b"".join(_line(pair) for pair in pairs)


def _decisions(
    pairs: Sequence[Counterfactual], section: Filter
) -> Iterator[tuple[str, str]]:
    """Yield the decision on both rows of each pair that the judges could decide on."""
    for pair in pairs:
        before = combine_verdicts(pair.original, section).status
        after = combine_verdicts(pair.swapped, section).status
        if pair.swapped.verdicts and "failed" not in (before, after):
            yield before, after


def _ratings(pair: Counterfactual, judge_index: int) -> tuple[float, float] | None:
    """Return a judge's ratings of both rows of a pair; None where one is missing."""
    ratings = []
    for sample in (pair.original, pair.swapped):
        if judge_index >= len(sample.verdicts):
            return None  # a gate took the changed row
        rating = sample.verdicts[judge_index].rating
        if rating is None:
            return None
        ratings.append(rating)
    return ratings[0], ratings[1]


def _compare_ratings(
    pairs: Sequence[Counterfactual], judge_index: int
) -> dict[str, Any]:
    """Return how often a judge's rating changes, and by how much."""
    differences = []
    for pair in pairs:
        ratings = _ratings(pair, judge_index)
        if ratings:
            differences.append(ratings[1] - ratings[0])
    changed = sum(difference != 0 for difference in differences)
    return {
        "rated": len(differences),
        "changed": share(changed, len(differences)),
        "changed_ci95": wilson(changed, len(differences)),
        **_mean(differences),
    }


def _compare_groups(pairs: Sequence[Counterfactual]) -> Iterator[dict[str, Any]]:
    """Yield the first judge's mean difference between each two groups.

    It is the rating with the second group minus that with the first one, whichever of
    them the original mentions.
    """
    differences: dict[tuple[Group, Group], list[float]] = defaultdict(list)
    for pair in pairs:
        ratings = _ratings(pair, 0)
        if ratings:
            difference = ratings[1] - ratings[0]
            groups = (pair.group, pair.other)
            if groups != tuple(sorted(groups)):
                groups = (pair.other, pair.group)
                difference = -difference
            differences[groups].append(difference)
    for (first, second), values in sorted(differences.items()):
        yield {
            "category": first.category,
            "first": first.name,
            "second": second.name,
            "rated": len(values),
            **_mean(values),
        }


def _mean(differences: Sequence[float]) -> dict[str, Any]:
    count = len(differences)
    total = sum(differences)
    squares = sum(difference**2 for difference in differences)
    return {
        "difference": round(total / count, 4) if count else None,
        "difference_ci95": mean_interval(count, total, squares),
    }


def _line(pair: Counterfactual) -> bytes:
    row: dict[str, Any] = {
        "id": pair.original.id,
        "scheme": pair.original.scheme,
        "category": pair.group.category,
        "group": pair.group.name,
        "other": pair.other.name,
    }
    for name, sample in (("original", pair.original), ("swapped", pair.swapped)):
        row[name] = {
            "instruction": sample.task,
            "response": sample.response,
            "verdicts": [asdict(verdict) for verdict in sample.verdicts],
        }
    return orjson.dumps(row) + b"\n"
