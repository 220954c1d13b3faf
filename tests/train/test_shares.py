"""Every row is trained on once an epoch, in the same order for any number of workers."""

import torch
from datasets import Dataset

from bezoar_ray.train import shares
from bezoar_ray.train.data import IGNORED


def order(rows: int, filled: int, epoch: float) -> list[int]:
    return list(shares.Once(rows, filled, 0, lambda: epoch))


def test_an_epoch_takes_each_row_once_and_what_was_added_last() -> None:
    first = order(97, 112, 0.0)
    assert sorted(first[:97]) == list(range(97)) and first[97:] == list(range(97, 112))
    assert order(97, 97, 0.0) == first[:97] == order(97, 98, 0.0)[:97]


def test_each_epoch_has_an_order_of_its_own_also_after_a_stop_within_it() -> None:
    assert order(97, 97, 1.0) == order(97, 97, 1.4) != order(97, 97, 0.0)


def test_rows_are_filled_up_with_such_as_nothing_is_learned_of() -> None:
    rows = Dataset.from_dict({"id": ["a", "b", "c"], "input_ids": [[5, 6]] * 3, "labels": [[5, 6]] * 3})
    assert shares.filled(rows, 3) is rows
    filled = shares.filled(rows, 4)
    assert len(filled) == 4 and filled[:3] == rows[:3] and filled[3]["labels"] == [IGNORED]
    loss = torch.nn.functional.cross_entropy(
        torch.randn(1, 9), torch.tensor(filled[3]["labels"]), reduction="sum", ignore_index=IGNORED
    )
    assert loss.item() == 0
