"""A goal as text, the goal that a rated answer reaches, and the goal of each prompt."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar_ray.data.attribute_line import (
    add_goal,
    attribute_line,
    draw_goal,
    rated_goal,
)
from bezoar_ray.data.schema import ATTRIBUTES, Rating
from bezoar_ray.recipe.steering import Goal

PAPERS: Goal = {
    "helpfulness": 4,
    "correctness": 4,
    "coherence": 4,
    "complexity": 2,
    "verbosity": 2,
}
BRIEF: Goal = {**PAPERS, "verbosity": 0}
QUESTION = {"role": "user", "content": "What is 2 + 2?"}

# A busy machine takes longer than hypothesis allows an example.
without_deadline = settings(deadline=None)
goals = st.dictionaries(st.sampled_from(ATTRIBUTES), st.integers(0, 4), min_size=1)


def rated(*ratings: float | None) -> Rating:
    return Rating("1", "s", "MIT", [QUESTION], "It is 4.", list(ratings))


def test_the_line_is_one_of_helpsteer2s() -> None:
    line = "helpfulness:4,correctness:4,coherence:4,complexity:2,verbosity:2"
    assert attribute_line(PAPERS) == line


@without_deadline
@given(goals, st.randoms())
def test_the_line_says_the_goal_in_one_order(goal: Goal, rng) -> None:
    line = attribute_line(goal)
    parts = [part.split(":") for part in line.split(",")]
    assert {name: int(rating) for name, rating in parts} == goal
    names = [name for name, _ in parts]
    assert names == [name for name in ATTRIBUTES if name in goal]

    shuffled = list(goal.items())
    rng.shuffle(shuffled)
    assert attribute_line(dict(shuffled)) == line


def test_a_rating_that_is_missing_is_not_in_the_line() -> None:
    goal = rated_goal(rated(3.0, None, 4.0, None, 0.0))
    assert attribute_line(goal) == "helpfulness:3,coherence:4,verbosity:0"
    assert rated_goal(rated(None, None, None, None, None)) == {}


@without_deadline
@given(st.lists(st.floats(0, 4), min_size=5, max_size=5))
def test_a_rating_of_another_scale_is_rounded(ratings: list[float]) -> None:
    goal = rated_goal(rated(*ratings))
    for name, rating in zip(ATTRIBUTES, ratings, strict=True):
        assert goal[name] in range(5)
        assert abs(goal[name] - rating) <= 0.5


def test_halves_are_rounded_up() -> None:
    goal = rated_goal(rated(0.5, 1.5, 2.5, 3.5, 4.0))
    assert [*goal.values()] == [1, 2, 3, 4, 4]


def test_the_line_is_the_system_message() -> None:
    line = {"role": "system", "content": "verbosity:1"}
    assert add_goal([QUESTION], {"verbosity": 1}) == [line, QUESTION]
    assert add_goal([], {"verbosity": 1}) == [line]


def test_a_system_message_of_the_prompt_stays() -> None:
    prompt = [{"role": "system", "content": "Be kind."}, QUESTION]
    steered = add_goal(prompt, {"verbosity": 1})
    assert steered == [
        {"role": "system", "content": "Be kind.\n\nverbosity:1"},
        QUESTION,
    ]
    assert prompt[0]["content"] == "Be kind."


@without_deadline
@given(st.lists(goals, min_size=1), st.integers(), st.text(), st.text())
def test_a_draw_depends_on_its_arguments_alone(
    choices: list[Goal], seed: int, purpose: str, prompt_id: str
) -> None:
    drawn = draw_goal(choices, seed, purpose, prompt_id)
    assert drawn in choices
    assert draw_goal(choices, seed, purpose, prompt_id) == drawn


def test_prompts_get_every_goal_equally_often() -> None:
    count = 3000
    drawn = Counter(
        draw_goal([PAPERS, BRIEF, {"verbosity": 4}], 0, "steer-1", str(number))[
            "verbosity"
        ]
        for number in range(count)
    )
    # Three standard deviations of a binomial count are 77.
    for verbosity in (0, 2, 4):
        assert drawn[verbosity] == pytest.approx(count / 3, abs=77)


@pytest.mark.parametrize(
    ("seed", "purpose"), [(1, "steer-1"), (0, "steer-2")], ids=["seed", "purpose"]
)
def test_another_seed_or_purpose_draws_anew(seed: int, purpose: str) -> None:
    choices = [PAPERS, BRIEF]
    same = 0
    for number in range(1000):
        first = draw_goal(choices, 0, "steer-1", str(number))
        same += first == draw_goal(choices, seed, purpose, str(number))
    assert 400 < same < 600
