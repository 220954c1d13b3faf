"""What the report says of the groups that rows mention, before and after the filter."""

import math
from dataclasses import replace

import pytest

from bezoar_ray.data.group_terms import GroupTerms
from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.report.group_table import NO_GROUP, GroupCounts, GroupTable
from bezoar_ray.stats import wilson

WORDS = """
source: this test
license: Apache-2.0
categories: {gender: {women: [she], men: [he]}}
occupations: [nurse, farmer]
"""


def row(number: int, text: str, status: str, rating: float | None) -> Sample:
    verdicts = [Verdict("judge", status, rating)] if rating else []
    sample = Sample(str(number), "orca", "none", instruction=text, response="Yes.")
    return replace(sample, status=status, verdicts=verdicts)


def table(samples: list[Sample]) -> GroupTable:
    counts = GroupCounts(GroupTerms(WORDS))
    for sample in samples:
        counts.add(sample)
    return counts.table()


@pytest.fixture
def unfair() -> GroupTable:
    """40 rows about women, 40 about men, 20 about neither: women lose three in four."""
    samples = []
    for number in range(40):
        kept = number % 4 == 0
        status = "accepted" if kept else "rejected"
        rating = 5.0 if kept else 1.0
        samples.append(row(number, "Is she a nurse?", status, rating))
        samples.append(row(100 + number, "Is he a farmer?", "accepted", 5.0))
    samples += [row(200 + n, "Is it late?", "accepted", 4.0) for n in range(20)]
    return table(samples)


def test_a_filter_that_rejects_one_group_is_visible(unfair):
    women, men, neither = unfair.groups
    assert (women.group.name, men.group.name, neither.group) == (
        "women",
        "men",
        NO_GROUP,
    )
    assert women.before.value == 0.4 and women.after.value == 10 / 70
    assert men.before.value == 0.4 and men.after.value == 40 / 70
    assert women.rejected.value == 0.75 and men.rejected.value == 0.0
    assert women.rejected.ci95 == wilson(30, 40)
    assert women.rejected.ci95[0] > men.rejected.ci95[1]


def test_the_mean_rating_of_each_group_has_its_interval(unfair):
    women, men, neither = unfair.groups
    assert (women.rating.value, men.rating.value) == (2.0, 5.0)
    assert neither.rating.value == 4.0
    # 10 ratings of 5 and 30 of 1: s = 1.754, t = 2.0227 with 39 degrees of freedom.
    half_width = 2.0227 * math.sqrt((10 * 9 + 30 * 1) / 39 / 40)
    expected = [2 - half_width, 2 + half_width]
    assert women.rating.ci95 == pytest.approx(expected, abs=1e-3)


def test_refusals_count_by_group():
    samples = [row(n, "Is she in?", "rejected", None) for n in range(4)]
    samples[0] = replace(samples[0], response="I cannot help with that.")
    found = table(samples).groups[0]
    assert found.refused.value == 0.25
    assert found.rating.value is None and found.rating.ci95 is None


def test_pronouns_stand_beside_the_occupations_before_and_after(unfair):
    nurse, farmer = sorted(
        unfair.occupations, key=lambda row: row.occupation, reverse=True
    )
    assert nurse.before == {"she": 40, "he": 0, "they": 0}
    assert nurse.after == {"she": 10, "he": 0, "they": 0}
    assert farmer.after == {"she": 0, "he": 40, "they": 0}


def test_lengths_and_the_entropy_of_words_stand_by_scheme():
    words = "alpha beta gamma delta"
    samples = [row(n, words, "accepted", 5.0) for n in range(3)]
    samples.append(row(9, "one two", "rejected", 1.0))
    (scheme,) = table(samples).schemes
    assert scheme.instruction_before.value == 14 / 4
    assert scheme.instruction_after.value == 4
    # Four words, equally frequent.
    assert scheme.entropy_after == pytest.approx(2.0)
    assert scheme.mentions_before.value == 0.0


def test_a_failed_row_without_text_counts_nowhere():
    missing = replace(row(0, "", "failed", None), response="")
    assert table([missing]).schemes == []
