"""Each row once an epoch, whatever the number of workers."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Sampler

from bezoar_ray.train.data import IGNORED


def filled(rows: Any, worker_passes: int) -> Any:
    """Rows (of type `datasets.Dataset`) up to a multiple of `worker_passes`: those that a pass of all workers takes.

    accelerate would repeat the first rows there. What is added has one token and no label: nothing is learned of it.
    """
    from datasets import Dataset, concatenate_datasets

    missing = -len(rows) % worker_passes
    if not missing:
        return rows
    silent = {"id": "", "input_ids": [0], "labels": [IGNORED]}
    added = {name: [silent[name]] * missing for name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_dict(added, features=rows.features)])


def once_each(trainer: Any, rows: int, seed: int) -> None:
    """Have a trainer on filled rows take the first `rows` in an order of its own each epoch, then what was added."""
    trainer._get_train_sampler = lambda given: Once(rows, len(given), seed, lambda: trainer.state.epoch or 0.0)


class Once(Sampler):
    """Indices of an epoch, which is the one that training is in: also after it was resumed on several workers."""

    def __init__(self, rows: int, filled: int, seed: int, epoch: Callable[[], float]):
        self._rows, self._filled, self._seed, self._epoch = rows, filled, seed, epoch

    def __len__(self) -> int:
        return self._filled

    def __iter__(self) -> Iterator[int]:
        import torch

        drawn = torch.Generator().manual_seed(self._seed + math.floor(self._epoch() + 1e-6))
        yield from torch.randperm(self._rows, generator=drawn).tolist()
        yield from range(self._rows, self._filled)
