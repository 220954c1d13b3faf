"""Seeds on disk, so that memory holds only those in use."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import overload

import pyarrow as pa

from bezoar_ray.data.schema import Seed

_BATCH_ROWS = 1_000
"""Rows of each record batch in the file, except the last one."""
_SCHEMA = pa.schema([(field.name, pa.string()) for field in fields(Seed)])


class SeedTable(Sequence[Seed]):
    """The seeds of a file that `write_seeds` wrote, in their order."""

    def __init__(self, path: Path):
        self._file = pa.memory_map(str(path))
        self._reader = pa.ipc.open_file(self._file)
        batches = self._reader.num_record_batches
        self._length = 0
        if batches:
            last_batch = self._reader.get_batch(batches - 1)
            self._length = (batches - 1) * _BATCH_ROWS + last_batch.num_rows

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Seed: ...

    @overload
    def __getitem__(self, index: slice) -> list[Seed]: ...

    def __getitem__(self, index: int | slice) -> Seed | list[Seed]:
        if isinstance(index, slice):
            positions = range(*index.indices(len(self)))
            return [self[position] for position in positions]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        batch, row = divmod(index % len(self), _BATCH_ROWS)
        one_row = self._reader.get_batch(batch).slice(row, 1)
        (values,) = one_row.to_pylist()
        return Seed(**values)

    def __iter__(self) -> Iterator[Seed]:
        for batch in range(self._reader.num_record_batches):
            for values in self._reader.get_batch(batch).to_pylist():
                yield Seed(**values)


def write_seeds(seeds: Iterable[Seed], path: Path) -> SeedTable:
    """Write seeds to an Arrow file as they come, and open the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (asdict(seed) for seed in seeds)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):
        while batch := list(islice(rows, _BATCH_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_SCHEMA))
    return SeedTable(path)
