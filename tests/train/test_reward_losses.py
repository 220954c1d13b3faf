"""The losses of reward models, against numbers that were computed by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar_ray.train.encoding import IGNORED
from bezoar_ray.train.reward_losses import bradley_terry, squared_error

MISSING = float(IGNORED)
PREDICTED = [[3.2, 3.0, 3.9, 1.6, 1.8], [1.1, 0.7, 3.1, 1.2, 2.4]]
RATED = [[4.0, 3.0, 4.0, 2.0, 2.0], [1.0, 1.0, 3.0, 1.0, 3.0]]


def test_the_error_is_a_mean_over_the_ratings_that_exist() -> None:
    # As in NeMo, four further columns are masked.
    nothing = [MISSING] * 4
    outputs = torch.tensor([[0.0] * 4 + row for row in PREDICTED], requires_grad=True)
    ratings = torch.tensor([nothing + row for row in RATED])
    loss = squared_error(outputs, ratings) / 10
    loss.backward()
    assert loss.item() == pytest.approx(0.136)
    assert outputs.grad is not None
    gradient = [0.0] * 4 + [-0.16, 0.0, -0.02, -0.08, -0.04]
    assert outputs.grad[0].tolist() == pytest.approx(gradient, abs=1e-7)

    ratings[1, -1] = MISSING
    assert (squared_error(outputs, ratings) / 9).item() == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("regular", 0.2014133), ("margin", 0.9740770), ("scaled", 0.4028266)],
)
def test_a_pair_of_strength_2_with_a_difference_of_1_5(kind: str, loss: float) -> None:
    found = bradley_terry(torch.tensor([1.5]), torch.tensor([2.0]), kind)
    assert found.item() == pytest.approx(loss, abs=1e-6)


@given(st.integers(0, 19))
def test_a_missing_rating_has_neither_loss_nor_gradient(missing: int) -> None:
    generator = torch.Generator().manual_seed(missing)
    outputs = torch.randn(4, 5, generator=generator).requires_grad_()
    ratings = torch.randint(5, (4, 5), generator=generator).float()
    row, column = divmod(missing, 5)
    ratings[row, column] = MISSING
    loss = squared_error(outputs, ratings)
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad[row, column] == 0
    others = torch.ones(4, 5, dtype=torch.bool)
    others[row, column] = False
    expected = (outputs - ratings)[others].square().sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
