"""The rows that a worker takes in each optimizer step: each row once per epoch."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset, Sampler

from bezoar_ray.train.encoding import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset as Rows


class StepSampler(Sampler[list[int]]):
    """For each optimizer step of an epoch, the indices of one worker's rows.

    The order of an epoch depends on the seed and the epoch alone, so a resumed training
    takes the same rows as an uninterrupted one, and the steps are the same for any
    number of workers. The rows of a step are dealt out evenly. Where this is
    impossible, in the last step of an epoch, a worker with one row less ends with a
    repeated row, whose index `RowsOrRepeats` understands.

    Args:
        rows: number of rows in the data set.
        batch: rows of an optimizer step, over all workers.
        rank: of this worker.
        workers: number of workers.
        seed: of the order.
        epoch: returns the epochs of training done so far, as a fraction. It is called
            when an epoch begins.
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
        self._rows = rows
        self._batch = batch
        self._rank = rank
        self._workers = workers
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(self._rows / self._batch)

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        # Epochs are fractions, so an end of 0.9999999 must count as 1.
        epoch = math.floor(self._epoch() + 1e-6)
        generator = torch.Generator().manual_seed(self._seed + epoch)
        order = torch.randperm(self._rows, generator=generator).tolist()
        for begin in range(0, self._rows, self._batch):
            step = order[begin : begin + self._batch]
            share = step[self._rank :: self._workers]
            missing = math.ceil(len(step) / self._workers) - len(share)
            repeated = -1 - step[0]
            yield share + [repeated] * missing


class RowsOrRepeats(Dataset[list[dict[str, Any]]]):
    """The rows of a data set; index -1 - n is a repeat of row n that counts nothing.

    A repeat has neither an id nor labels. A row may consist of several examples of a
    trainer: `width` examples in succession.
    """

    def __init__(self, examples: "Rows", width: int = 1):
        self._examples = examples
        self._width = width

    def __len__(self) -> int:
        return len(self._examples) // self._width

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        is_repeat = index < 0
        row = -1 - index if is_repeat else index
        begin = self._width * row
        examples = [self._examples[begin + offset] for offset in range(self._width)]
        if is_repeat:
            return [_silence(example) for example in examples]
        return examples


def _silence(example: dict[str, Any]) -> dict[str, Any]:
    """Return the example without id and labels, so that nothing is learned from it."""
    silent = example | {"id": ""}
    if "labels" in example:
        silent["labels"] = [IGNORED] * len(example["labels"])
    return silent
