"""Which rows a worker takes in each optimiser step: each row once an epoch, whatever the number of workers."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Dataset, Sampler


class StepSampler(Sampler):
    """For each optimiser step of an epoch, the indices of the rows that fall to one worker.

    The order of an epoch follows from the seed and the epoch alone, so that a resumed training goes on with the rows
    that an undisturbed one would take. The rows of a step are dealt out evenly. Where the last step of an epoch has
    fewer rows than workers, a worker without one repeats a row, as `RowsOrRepeats` understands it.

    Args:
        rows: in the data set.
        batch: rows of an optimiser step, over all workers.
        rank: of this worker.
        workers: how many there are.
        seed: of the order.
        epoch: how many epochs of training are done, as a fraction; the sampler asks when an epoch begins.
    """

    def __init__(self, rows: int, batch: int, rank: int, workers: int, seed: int, epoch: Callable[[], float]):
        self._rows, self._batch, self._rank, self._workers = rows, batch, rank, workers
        self._seed, self._epoch = seed, epoch

    def __len__(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(self._rows / self._batch)

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        draw = torch.Generator().manual_seed(self._seed + math.floor(self._epoch() + 1e-6))
        order = torch.randperm(self._rows, generator=draw).tolist()
        for begin in range(0, self._rows, self._batch):
            step = order[begin : begin + self._batch]
            yield step[self._rank :: self._workers] or [-1 - step[0]]


class RowsOrRepeats(Dataset):
    """The rows of a data set; under -1 - index, the row again without its `id`, which says that it counts nothing.

    A row may be several examples of a trainer, which follow one another (`width` of them).
    """

    def __init__(self, examples: Any, width: int = 1):
        self._examples, self._width = examples, width

    def __len__(self) -> int:
        return len(self._examples) // self._width

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        place = index if index >= 0 else -1 - index
        examples = [self._examples[self._width * place + offset] for offset in range(self._width)]
        return examples if index >= 0 else [example | {"id": ""} for example in examples]
