"""What crosses from one Ray actor to the next: rows, or an error as text."""

import pytest

from bezoar_ray.data.schema import Sample
from bezoar_ray.errors import BezoarError, BudgetReached, RecipeError
from bezoar_ray.pipeline.block import Block, decode_block, encode_block


class Special(RecipeError):
    """Has more arguments than a message, so that its message alone cannot rebuild it."""

    def __init__(self, message, extra):
        super().__init__(message)
        self.extra = extra


def cross(block):
    columns = encode_block(block)
    assert {len(values) for values in columns.values()} == {1}
    return decode_block({name: values[0] for name, values in columns.items()}, Sample)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_arrive_in_their_order(count):
    samples = [Sample(str(n), "orca", "x", response="a\nb") for n in range(count)]
    assert cross(Block(samples)) == Block(samples)


def test_a_message_that_is_not_utf_8_arrives():
    arrived = cross(Block([], BezoarError("no such file: caf\udce9.txt")))
    assert str(arrived.error) == r"no such file: caf\udce9.txt"


@pytest.mark.parametrize(
    ("error", "arrives_as"),
    [
        (BezoarError("out of é\nmemory"), BezoarError),
        (RecipeError(""), RecipeError),
        (BudgetReached("5 dollars"), BudgetReached),
        (Special("the key is wrong", extra=1), RecipeError),
    ],
)
def test_an_error_arrives_as_its_closest_known_class_with_its_message(
    error, arrives_as
):
    arrived = cross(Block([], error))
    assert arrived.rows == []
    assert type(arrived.error) is arrives_as
    assert str(arrived.error) == str(error)
    assert arrived.error.exit_code == error.exit_code
