"""From a predicted rating to the probability of each rating, by a Beta distribution."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.recipe.steering import Edges
from bezoar_ray.train.attribute_bins import (
    BIN_EDGES,
    bin_log_probabilities,
    goal_log_probabilities,
)

ALL_EDGES: list[Edges] = list(BIN_EDGES)
GOAL = dict(zip(ATTRIBUTES, (4, 4, 4, 2, 2), strict=True))
GOOD = [3.6, 3.5, 3.9, 2.0, 2.1]
MEDIOCRE = [3.2, 3.0, 3.8, 2.4, 2.9]

# The first example of a run imports scipy, which takes longer than hypothesis allows.
without_deadline = settings(deadline=None)
edges_of_any_kind = st.sampled_from(ALL_EDGES)
ratings = st.floats(0, 4)


@pytest.mark.parametrize(
    ("edges", "predicted", "probabilities", "mean"),
    [
        ("fifths", 0.4, [0.93136, 0.06832, 0.00031, 0, 0], 0.069),
        ("fifths", 2.0, [0.000597, 0.163046, 0.672713, 0.163046, 0.000597], 2.0),
        ("fifths", 3.2, [0, 0.00003, 0.01493, 0.44409, 0.54096], 3.526),
        ("fifths", 3.8, [0, 0, 0.00002, 0.00941, 0.99057], 3.991),
        ("rounding", 0.4, [0.71173, 0.28757, 0.00070, 0, 0], 0.289),
        ("rounding", 2.0, [0.000005, 0.109019, 0.781952, 0.109019, 0.000005], 2.0),
        ("rounding", 3.2, [0, 0.00001, 0.02651, 0.79446, 0.17902], 3.152),
        ("rounding", 3.8, [0, 0, 0.00004, 0.06743, 0.93253], 3.932),
    ],
)
def test_the_probability_of_each_rating(
    edges: Edges, predicted: float, probabilities: list[float], mean: float
) -> None:
    found = np.exp(bin_log_probabilities(predicted, edges))
    assert found == pytest.approx(probabilities, abs=1e-5)
    assert found @ np.arange(5) == pytest.approx(mean, abs=6e-4)


@pytest.mark.parametrize(
    ("edges", "predicted", "log_probability"),
    [
        ("rounding", GOOD, -1.444681),
        ("fifths", GOOD, -1.031424),
        ("rounding", MEDIOCRE, -7.165508),
        ("fifths", MEDIOCRE, -4.979199),
    ],
)
def test_the_joint_probability_of_a_goal(
    edges: Edges, predicted: list[float], log_probability: float
) -> None:
    found = goal_log_probabilities([predicted], [GOAL], edges)
    assert found == pytest.approx([log_probability], abs=1e-6)


def test_rounding_edges_are_the_default() -> None:
    assert goal_log_probabilities([GOOD], [GOAL]) == pytest.approx([-1.444681])


@pytest.mark.parametrize(
    ("predicted", "rating", "log_probability"),
    # With 60 digits, by mpmath.
    [(3.75, 0, -45.15721054151561), (1.65, 4, -16.851460055570314)],
)
def test_a_far_rating_is_as_exact_as_a_near_one(
    predicted: float, rating: int, log_probability: float
) -> None:
    found = bin_log_probabilities(predicted)[rating]
    assert found == pytest.approx(log_probability, abs=1e-12)


@without_deadline
@given(ratings, edges_of_any_kind)
def test_the_probabilities_add_up_to_1(predicted: float, edges: Edges) -> None:
    found = np.exp(bin_log_probabilities(predicted, edges))
    assert found.sum() == pytest.approx(1, abs=1e-12)


@without_deadline
@given(st.floats(-1e6, 1e6), edges_of_any_kind)
def test_no_rating_is_impossible(predicted: float, edges: Edges) -> None:
    found = bin_log_probabilities(predicted, edges)
    assert (found > -57).all()
    assert (found < 0).all()


@without_deadline
@given(ratings, edges_of_any_kind)
def test_the_scale_can_be_reversed(predicted: float, edges: Edges) -> None:
    found = bin_log_probabilities(predicted, edges)
    reversed_scale = bin_log_probabilities(4 - predicted, edges)
    assert found == pytest.approx(reversed_scale[::-1], abs=1e-9)


@without_deadline
@given(ratings, ratings, edges_of_any_kind)
def test_a_higher_prediction_makes_a_4_more_likely_and_a_0_less(
    one: float, other: float, edges: Edges
) -> None:
    low, high = sorted([one, other])
    before = bin_log_probabilities(low, edges)
    after = bin_log_probabilities(high, edges)
    assert after[4] >= before[4] - 1e-12
    assert after[0] <= before[0] + 1e-12


@without_deadline
@given(st.sets(st.sampled_from(ATTRIBUTES)))
def test_an_attribute_that_the_goal_does_not_name_counts_nothing(
    named: set[str],
) -> None:
    goal = {name: rating for name, rating in GOAL.items() if name in named}
    found = goal_log_probabilities([MEDIOCRE], [goal])
    expected = 0.0
    for name, predicted in zip(ATTRIBUTES, MEDIOCRE, strict=True):
        if name in named:
            expected += bin_log_probabilities(predicted)[GOAL[name]]
    assert found == pytest.approx([expected])


def test_each_answer_has_its_own_goal() -> None:
    brief = {**GOAL, "verbosity": 0}
    found = goal_log_probabilities([GOOD, GOOD], [GOAL, brief])
    steps = bin_log_probabilities(GOOD[-1])
    assert found[0] == pytest.approx(-1.444681)
    assert found[1] - found[0] == pytest.approx(steps[0] - steps[2])


def test_a_prediction_that_is_nan_is_not_hidden() -> None:
    assert np.isnan(bin_log_probabilities(math.nan)).all()
