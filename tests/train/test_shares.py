"""Every row is trained on once an epoch, also where workers and passes do not divide the rows."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from torch.utils.data import BatchSampler

from bezoar_ray.recipe import Sft
from bezoar_ray.train import loop, shares
from bezoar_ray.train.prepared import Prepared


def epoch(rows: int, workers: int, micro: int, number: int = 0) -> list[list[list[int]]]:
    """The passes of each worker, as accelerate gives them out."""
    told = []
    for rank in range(workers):
        sampler = SeedableRandomSampler(range(rows), generator=torch.Generator(), data_seed=0)
        sampler.set_epoch(number)
        loader = SimpleNamespace(batch_sampler=BatchSamplerShard(BatchSampler(sampler, micro, False), workers, rank))
        trainer = SimpleNamespace(get_train_dataloader=lambda loader=loader: loader)
        shares.each_once(trainer)
        shard = trainer.get_train_dataloader().batch_sampler
        told.append(list(shard))
        assert len(shard) == len(told[-1]) == shares.passes(rows, workers, micro)
    return told


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("micro", [1, 3, 8])
@pytest.mark.parametrize("rows", [4, 16, 17, 96, 97, 99])
def test_all_rows_once_an_epoch_in_as_many_passes_on_every_worker(rows: int, workers: int, micro: int) -> None:
    told = epoch(rows, workers, micro)
    assert sorted(row for worker in told for batch in worker for row in batch) == list(range(rows))
    assert len({len(worker) for worker in told}) == 1 and all(1 <= len(b) <= micro + 1 for w in told for b in w)
    assert told != epoch(rows, workers, micro, number=1)


def test_whole_passes_take_the_rows_that_a_single_worker_would() -> None:
    sampler = SeedableRandomSampler(range(96), generator=torch.Generator(), data_seed=0)
    alone = list(BatchSampler(sampler, 16, False))
    assert [first + second for first, second in zip(*epoch(96, 2, 8), strict=True)] == alone


@pytest.mark.parametrize(("rows", "workers", "steps"), [(97, 1, 7), (97, 2, 6), (98, 2, 7), (97, 4, 6), (100, 4, 7)])
def test_steps_are_counted_alike(rows: int, workers: int, steps: int) -> None:
    """A last row that is alone goes with the step before where it cannot be shared."""
    part = Sft(batch=16, micro_batch=4, workers=workers)
    assert loop._length(Prepared("x", "x.arrow", rows, 0, 1, 1, {}), part) == steps
