"""Every row is trained on once an epoch, in the same steps for any number of workers."""

import pytest
from datasets import Dataset

from bezoar_ray.train.sampler import RowsOrRepeats, StepSampler


def steps(
    rows: int, batch: int, rank: int = 0, workers: int = 1, epoch: float = 0.0
) -> list[list[int]]:
    return list(StepSampler(rows, batch, rank, workers, 0, lambda: epoch))


def test_an_epoch_takes_each_row_once() -> None:
    found = steps(97, 16)
    assert sorted(index for step in found for index in step) == list(range(97))
    assert [len(step) for step in found] == [16] * 6 + [1]
    assert len(StepSampler(97, 16, 0, 1, 0, lambda: 0.0)) == len(found)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_the_steps_are_those_of_a_single_worker(workers: int) -> None:
    apart = [steps(101, 16, rank, workers) for rank in range(workers)]
    for number, whole in enumerate(steps(101, 16)):
        shares = [found[number] for found in apart]
        assert sorted(
            index for share in shares for index in share if index >= 0
        ) == sorted(whole)
        assert len(set(map(len, shares))) == 1 and all(
            min([0, *share[:-1]]) >= 0 for share in shares
        )


def test_a_worker_with_fewer_rows_of_the_last_step_repeats_one_that_counts_nothing() -> (
    None
):
    (whole,) = steps(97, 16)[-1:]
    assert [steps(97, 16, rank, 3)[-1] for rank in range(3)] == [
        whole,
        [-1 - whole[0]],
        [-1 - whole[0]],
    ]
    rows = RowsOrRepeats(
        Dataset.from_dict(
            {"id": ["a", "b"], "input_ids": [[5], [6, 7]], "labels": [[5], [-100, 7]]}
        )
    )
    assert rows[1] == [{"id": "b", "input_ids": [6, 7], "labels": [-100, 7]}]
    assert rows[-1 - 1] == [{"id": "", "input_ids": [6, 7], "labels": [-100, -100]}]


def test_a_row_may_be_several_examples() -> None:
    rows = RowsOrRepeats(
        Dataset.from_dict({"id": ["a", "a", "b", "b"], "label": [True, False] * 2}),
        width=2,
    )
    assert len(rows) == 2 and rows[1] == [
        {"id": "b", "label": True},
        {"id": "b", "label": False},
    ]
    assert [example["id"] for example in rows[-1 - 1]] == ["", ""]


def test_each_epoch_has_an_order_of_its_own_also_after_a_stop_within_it() -> None:
    assert steps(97, 16, epoch=1.0) == steps(97, 16, epoch=1.4) != steps(97, 16)
