"""Intervals and tests agree with published and hand-worked values."""

import pytest

from bezoar_ray.stats import (
    as_percent,
    holm,
    kappa_ci95,
    mean_interval,
    paired_p,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "count", "interval"),
    [
        (81, 263, [0.2553, 0.3662]),  # Newcombe 1998, table I, method 3
        (0, 20, [0.0, 0.1611]),
        (1, 29, [0.0061, 0.1718]),
        (20, 20, [0.8389, 1.0]),
    ],
)
def test_wilsons_interval_of_published_examples(right, count, interval):
    assert wilson(right, count) == pytest.approx(interval, abs=1e-4)


def test_nothing_has_no_interval():
    assert wilson(0, 0) is None


def test_a_share_is_shown_with_its_interval_where_it_has_one():
    assert as_percent(0.81, [0.7222, 0.8749]) == "81.0 % (72.2 to 87.5)"
    assert as_percent(0.81, None) == "81.0 %"


def test_only_items_on_which_two_models_differ_count():
    """9 against 1 of 10: twice the binomial's 11 / 1024."""
    first, second = [True] * 9 + [False], [False] * 9 + [True]
    assert (
        paired_p(first, second) == pytest.approx(22 / 1024) == paired_p(second, first)
    )
    assert paired_p(first + [True] * 500, second + [True] * 500) == pytest.approx(
        22 / 1024
    )


def test_models_that_agree_on_all_cannot_be_told_apart():
    assert paired_p([True, False], [True, False]) == 1.0
    assert paired_p([], []) == 1.0


def test_p_values_are_corrected_for_their_number():
    """As R's p.adjust(c(0.04, 0.01, 0.03), "holm") has it."""
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx(
        {"a": 0.06, "b": 0.03, "c": 0.06}
    )
    assert holm({"one": 0.04}) == {"one": 0.04} and holm({"a": 0.9, "b": 0.8}) == {
        "a": 1.0,
        "b": 1.0,
    }
    assert holm({}) == {}


def test_the_interval_of_a_mean_is_students():
    # 1 to 5: s = 1.5811, and t is 2.7764 with 4 degrees of freedom.
    assert mean_interval(5, 15, 55) == pytest.approx([1.0368, 4.9632], abs=1e-4)
    assert mean_interval(1, 3, 9) is None


def test_kappas_interval_is_the_large_sample_one_where_there_are_many_items():
    """Cohen 1960: the standard error is sqrt(0.9 * 0.1 / 400) / 0.5 = 0.03."""
    low, high = kappa_ci95([[0.45, 0.05], [0.05, 0.45]], 400)
    assert (low, high) == pytest.approx((0.741, 0.859), abs=0.01)


def test_few_items_without_a_disagreement_do_not_prove_a_kappa_of_1():
    low, high = kappa_ci95([[0.5, 0.0], [0.0, 0.5]], 10)
    assert low < 0.6 and high == 1.0


def test_kappa_has_no_interval_where_it_is_not_defined():
    assert kappa_ci95([[1.0, 0.0], [0.0, 0.0]], 50) is None
    assert kappa_ci95([[0.5, 0.0], [0.0, 0.5]], 1) is None
    assert kappa_ci95([[0.9, 0.1], [0.0, 0.0]], 2) is not None
