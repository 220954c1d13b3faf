"""Which rows a worker takes in each optimiser step: each row once an epoch, whatever the number of workers."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset, Sampler

from bezoar_ray.train.encoding import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset as Rows


class StepSampler(Sampler[list[int]]):
    """For each optimiser step of an epoch, the indices of the rows that fall to one worker.

    The order of an epoch follows from the seed and the epoch alone, so that a resumed training goes on with the rows
    that an undisturbed one would take. The rows of a step are dealt out evenly. Where they do not come out even, in the
    last step of an epoch, a worker that has one fewer repeats a row at its end, as `RowsOrRepeats` understands it.

    Args:
        rows: in the data set.
        batch: rows of an optimiser step, over all workers.
        rank: of this worker.
        workers: how many there are.
        seed: of the order.
        epoch: how many epochs of training are done, as a fraction; the sampler asks when an epoch begins.
    """

    def __init__(
        self,
        rows: int,
        batch: int,
        rank: int,
        workers: int,
        seed: int,
        epoch: Callable[[], float],
    ):
        self._rows, self._batch, self._rank, self._workers = rows, batch, rank, workers
        self._seed, self._epoch = seed, epoch

    def __len__(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(self._rows / self._batch)

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        draw = torch.Generator().manual_seed(
            self._seed + math.floor(self._epoch() + 1e-6)
        )
        order = torch.randperm(self._rows, generator=draw).tolist()
        for begin in range(0, self._rows, self._batch):
            step = order[begin : begin + self._batch]
            share = step[self._rank :: self._workers]
            missing = math.ceil(len(step) / self._workers) - len(share)
            yield share + [-1 - step[0]] * missing


class RowsOrRepeats(Dataset[list[dict[str, Any]]]):
    """The rows of a data set; under -1 - index, the row again without its `id` and labels, as it counts nothing.

    A row may be several examples of a trainer, which follow one another (`width` of them).
    """

    def __init__(self, examples: "Rows", width: int = 1):
        self._examples, self._width = examples, width

    def __len__(self) -> int:
        return len(self._examples) // self._width

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        place = index if index >= 0 else -1 - index
        examples = [
            self._examples[self._width * place + offset]
            for offset in range(self._width)
        ]
        return examples if index >= 0 else [_silent(example) for example in examples]


def _silent(example: dict[str, Any]) -> dict[str, Any]:
    """An example of which nothing is learned, and whose tokens do not count among those of its step."""
    labels = (
        {"labels": [IGNORED] * len(example["labels"])} if "labels" in example else {}
    )
    return example | {"id": ""} | labels
