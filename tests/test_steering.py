"""The recipe's section `steer`: what it takes, and what it refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from bezoar_ray.recipe.steering import Steer

BRIEF = {"helpfulness": 4, "verbosity": 0}
LONG = {"helpfulness": 4, "verbosity": 4}


def refusal(**change: object) -> tuple[str, str]:
    """The only fault that is found: its field and its message."""
    fields: dict[str, Any] = {"goals": [BRIEF]} | change
    with pytest.raises(ValidationError) as error:
        Steer.model_validate(fields)
    (fault,) = error.value.errors()
    field = ".".join(str(part) for part in fault["loc"])
    return field, fault["msg"].removeprefix("Value error, ")


def test_the_defaults_are_the_papers() -> None:
    steer = Steer.model_validate({"goals": [BRIEF, LONG]})
    assert (steer.iterations, steer.samples, steer.prompts) == (2, 10, 20_000)
    assert (steer.temperature, steer.top_p) == (0.7, 0.9)
    assert steer.edges == "rounding"
    assert steer.goals == (BRIEF, LONG)
    assert Steer.model_validate_json(steer.model_dump_json()) == steer


def test_every_field_changes_the_result() -> None:
    steer = Steer.model_validate({"goals": [BRIEF]})
    assert set(steer.fingerprint_fields()) == set(Steer.model_fields)


def test_a_goal_is_required_and_names_an_attribute() -> None:
    with pytest.raises(ValidationError, match="Field required"):
        Steer.model_validate({})
    assert refusal(goals=[]) == (
        "goals",
        "expected at least one goal, such as [{verbosity: 2}]",
    )
    assert refusal(goals=[BRIEF, {}]) == (
        "goals",
        "entry 1 names no attribute. Give it a rating, such as verbosity: 2",
    )


def test_an_unknown_attribute_is_named_with_the_known_ones() -> None:
    field, message = refusal(goals=[BRIEF, {"helpfulnes": 4}])
    assert field == "goals.1.helpfulnes.[key]"
    assert "'helpfulness'" in message
    assert "'verbosity'" in message


@pytest.mark.parametrize("rating", [-1, 5, 2.0, 2.5, True, "2", None])
def test_a_goal_is_a_whole_number_from_0_to_4(rating: object) -> None:
    field, _ = refusal(goals=[{"verbosity": rating}])
    assert field == "goals.0.verbosity"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", -1),
        ("samples", 1),
        ("prompts", 0),
        ("temperature", 0),
        ("top_p", 0),
        ("top_p", 1.1),
        ("edges", "halves"),
    ],
)
def test_a_value_without_a_meaning_is_refused(field: str, value: object) -> None:
    assert refusal(**{field: value})[0] == field


def test_steerlm_1_is_no_iteration() -> None:
    steer = Steer.model_validate({"goals": [BRIEF], "iterations": 0})
    assert steer.iterations == 0
