"""A loss or gradient that is NaN or infinite is noticed, with the rows of its pass."""

import math

import pytest
import torch

from bezoar_ray.train.nonfinite import Finiteness


def step(*losses: float, gradient: float | None = 1.0) -> Finiteness:
    found = Finiteness()
    for number, loss in enumerate(losses):
        found.add_loss(torch.tensor(loss), [f"row{number}", f"more{number}"])
    found.set_gradient(gradient)
    return found


def test_a_step_of_finite_losses_has_no_broken_rows() -> None:
    assert step(1.0, 2.0).broken_rows() == []
    assert step(1.0, gradient=None).broken_rows() == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_the_rows_of_the_broken_pass_are_named(loss: float) -> None:
    assert step(1.0, loss, 2.0, gradient=math.nan).broken_rows() == ["row1", "more1"]


def test_where_only_the_gradient_is_broken_all_rows_of_the_step_are_named() -> None:
    found = step(1.0, 2.0, gradient=torch.tensor(math.nan))
    assert found.broken_rows() == ["row0", "more0", "row1", "more1"]
    found.add_loss(torch.tensor(1.0), ["next"])
    found.set_gradient(1.0)
    assert found.broken_rows() == []  # of the step before, nothing is left
