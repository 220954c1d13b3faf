"""How several judges decide over one row."""

import pytest

from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.filter.aggregate import combine_verdicts
from bezoar_ray.recipe import Filter


def ended(combine, *ratings):
    verdicts = [
        Verdict(
            f"judge{n}",
            "failed" if r is None else "accepted" if r >= 4 else "rejected",
            r,
            "why",
        )
        for n, r in enumerate(ratings)
    ]
    sample = combine_verdicts(
        Sample(id="1", scheme="orca", operation="x", verdicts=verdicts),
        Filter(combine=combine),
    )
    return sample.status, sample.reason


@pytest.mark.parametrize(
    ("combine", "ratings", "status"),
    [
        ("first", (5, 1, 1), "accepted"),
        ("first", (1, 5, 5), "rejected"),
        ("all", (5, 4, 4), "accepted"),
        ("all", (5, 4, 3.5), "rejected"),
        ("majority", (1, 5, 5), "accepted"),
        ("majority", (5, 1), "rejected"),
        ("mean", (5, 3), "accepted"),
        ("mean", (5, 2), "rejected"),
    ],
)
def test_the_rule_decides(combine, ratings, status):
    assert ended(combine, *ratings) == (status, "" if status == "accepted" else "judge")


def test_a_row_that_a_deciding_judge_could_not_rate_is_failed():
    assert ended("first", 5, None) == ("accepted", "")
    for combine in ("all", "majority", "mean"):
        assert ended(combine, 5, None, 5) == ("failed", "unrated: why")
