"""Rows on disk, and their division into the blocks that Ray works on."""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic

import pyarrow as pa

from bezoar_ray.data.row import R, decode_row, encode_row
from bezoar_ray.store import at

ROWS_PER_BATCH = 4
"""Rows of a record batch, and so of the smallest block. With small blocks, the first
rows of a small run reach the next stage early."""

# The number of blocks up to which blocks stay small. With more rows, blocks grow,
# because each block costs Ray about 30 ms of CPU time.
_ENOUGH_BLOCKS = 128
# The driver keeps a reference to each block.
_MAX_BLOCKS = 1024
_SCHEMA = pa.schema([("item", pa.binary())])


@dataclass(frozen=True)
class Spool(Generic[R]):
    """Rows in an Arrow file of record batches, which are read one at a time.

    On a cluster, all nodes have to see the path: it is in a bucket or on a shared disk.
    """

    path: str
    batches: int
    """Record batches in the file."""
    row_type: type[R]

    def __iter__(self) -> Iterator[R]:
        return self._read_batches(range(self.batches))

    def read(self, block: range) -> list[R]:
        """Return the rows of a block, which is a range of record batches."""
        return list(self._read_batches(block))

    def blocks(self, slots: int) -> list[range]:
        """Divide the record batches into blocks.

        Blocks are small where there are few rows. Where there are many, a block has as
        many rows as there are `slots`: calls that its model has in flight at a time.
        """
        length = min(slots // ROWS_PER_BATCH, self.batches // _ENOUGH_BLOCKS)
        length = max(1, length, math.ceil(self.batches / _MAX_BLOCKS))
        return [
            range(start, min(start + length, self.batches))
            for start in range(0, self.batches, length)
        ]

    def _read_batches(self, batches: range) -> Iterator[R]:
        for number in batches:
            for line in self._reader.get_batch(number).column(0).to_pylist():
                yield decode_row(line, self.row_type)

    @cached_property
    def _reader(self) -> pa.RecordBatchFileReader:
        store, name = at(self.path)
        return pa.ipc.open_file(store.open(name))

    def __reduce__(self) -> tuple[type["Spool[R]"], tuple[str, int, type[R]]]:
        # Without the open file: the process that unpickles the spool opens it again.
        return Spool, (self.path, self.batches, self.row_type)


class SpoolWriter(Generic[R]):
    """Writes a spool row by row."""

    def __init__(self, path: str | Path, row_type: type[R]):
        self._path = str(path)
        self._row_type = row_type
        self._lines: list[bytes] = []
        self._batches = 0
        self._open_files = ExitStack()
        store, name = at(path)
        sink = self._open_files.enter_context(store.writing(name))
        self._writer = self._open_files.enter_context(
            pa.ipc.new_file(str(sink), _SCHEMA)
        )

    def add(self, row: R) -> None:
        """Write the next row."""
        self._lines.append(encode_row(row))
        if len(self._lines) == ROWS_PER_BATCH:
            self._write_batch()

    def close(self) -> Spool[R]:
        """Finish the file and return the spool of all rows."""
        if self._lines:
            self._write_batch()
        self._open_files.close()
        return Spool(self._path, self._batches, self._row_type)

    def _write_batch(self) -> None:
        column = pa.array(self._lines, pa.binary())
        self._writer.write_batch(pa.record_batch([column], schema=_SCHEMA))
        self._lines = []
        self._batches += 1


def spool_rows(rows: Iterable[R], path: str | Path, row_type: type[R]) -> Spool[R]:
    """Write all rows to a spool at `path`."""
    writer = SpoolWriter(path, row_type)
    for row in rows:
        writer.add(row)
    return writer.close()
