"""Seeds on disk: as many as there are, of which only those asked for are in memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import overload

import pyarrow as pa

from bezoar_ray.data.schema import Seed

_ROWS = 1_000  # in a batch of the file
_SCHEMA = pa.schema([(field.name, pa.string()) for field in fields(Seed)])


class SeedTable(Sequence[Seed]):
    """The seeds that `write_seeds` wrote, in their order."""

    def __init__(self, path: Path):
        self._file = pa.memory_map(str(path))
        self._reader = pa.ipc.open_file(self._file)
        batches = self._reader.num_record_batches
        last = self._reader.get_batch(batches - 1).num_rows if batches else 0
        self._length = max(0, batches - 1) * _ROWS + last

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, number: int) -> Seed: ...

    @overload
    def __getitem__(self, number: slice) -> list[Seed]: ...

    def __getitem__(self, number: int | slice) -> Seed | list[Seed]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        batch, row = divmod(number % len(self), _ROWS)
        (values,) = self._reader.get_batch(batch).slice(row, 1).to_pylist()
        return Seed(**values)

    def __iter__(self) -> Iterator[Seed]:
        for number in range(self._reader.num_record_batches):
            for values in self._reader.get_batch(number).to_pylist():
                yield Seed(**values)


def write_seeds(seeds: Iterable[Seed], path: Path) -> SeedTable:
    """Write seeds as they come, and open what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds = iter(seeds)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        while batch := [asdict(seed) for seed in islice(seeds, _ROWS)]:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_SCHEMA))
    return SeedTable(path)
