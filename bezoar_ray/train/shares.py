"""Each row once an epoch, whatever the number of workers: how an epoch's rows are shared out."""

from collections.abc import Iterator
from typing import Any


def passes(rows: int, workers: int, micro: int) -> int:
    """Forward passes of each worker in an epoch, of up to `micro` rows; rows that are fewer than workers make none."""
    whole, rest = divmod(rows, workers * micro)
    return whole + (rest >= workers)


def each_once(trainer: Any) -> None:
    """Have a trainer's workers share the last rows of an epoch.

    accelerate gives every worker full passes: where rows are no multiple of them, it repeats the first ones. Here
    the last pass is smaller; where there is no row for every worker, some take one more in the pass before.
    """
    make = trainer.get_train_dataloader

    def shared() -> Any:
        loader = make()
        shard = loader.batch_sampler
        if getattr(shard, "num_processes", 1) > 1:
            shard.batch_sampler, shard.batch_size = Shares(shard.batch_sampler, shard.num_processes), None
        return loader

    trainer.get_train_dataloader = shared


class Shares:
    """Batches of rows' indices, in turn one for each worker; `given` is torch's BatchSampler."""

    drop_last = False

    def __init__(self, given: Any, workers: int):
        self.sampler, self._micro, self._workers = given.sampler, given.batch_size, workers

    def __len__(self) -> int:
        return self._workers * passes(len(self.sampler), self._workers, self._micro)

    def __iter__(self) -> Iterator[list[int]]:
        rows, step = list(self.sampler), self._workers * self._micro
        last = passes(len(rows), self._workers, self._micro) - 1
        for n in range(last):
            yield from _split(rows[n * step : (n + 1) * step], self._workers)
        yield from _split(rows[last * step :], self._workers)


def _split(rows: list[int], workers: int) -> list[list[int]]:
    """Parts of a pass, one after the other; their lengths differ by one at most."""
    each, more = divmod(len(rows), workers)
    ends = [(n + 1) * each + min(n + 1, more) for n in range(workers)]
    return [rows[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
