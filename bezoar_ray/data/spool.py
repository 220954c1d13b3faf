"""Items on disk, and how they are divided into the cells that Ray works on."""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from bezoar_ray.store import at

FEW = 4  # items in the smallest cell: of a small run, rows go on soon
_ENOUGH = 128  # cells for rows to go on soon; with more items, cells grow, as each costs Ray some 30 ms of CPU time
_MOST = (
    1024  # cells, whatever the number of items: the driver keeps a reference to each
)
_ITEM = pa.schema([("item", pa.binary())])


@dataclass(frozen=True)
class Spool:
    """Items on disk, as an Arrow file with one record batch for each `FEW`: never all of them in memory.

    On a cluster the path has to be one that all nodes see, in a bucket or on a disk of theirs.
    """

    path: str
    batches: int

    def __iter__(self) -> Iterator[bytes]:
        return self._items(range(self.batches))

    def read(self, cell: range) -> list[bytes]:
        """The items of a cell."""
        return list(self._items(cell))

    def cells(self, slots: int) -> list[range]:
        """The record batches of each cell: few items, and of many no more than a model has calls in flight."""
        length = max(
            1,
            min(slots // FEW, self.batches // _ENOUGH),
            math.ceil(self.batches / _MOST),
        )
        return [
            range(start, min(start + length, self.batches))
            for start in range(0, self.batches, length)
        ]

    def _items(self, batches: range) -> Iterator[bytes]:
        for number in batches:
            yield from self._reader.get_batch(number).column(0).to_pylist()

    @cached_property
    def _reader(self) -> pa.RecordBatchFileReader:
        store, name = at(self.path)
        return pa.ipc.open_file(store.open(name))

    def __reduce__(self) -> tuple[type["Spool"], tuple[str, int]]:
        return Spool, (self.path, self.batches)  # an open file stays where it is


class ItemWriter:
    """Writes items one by one."""

    def __init__(self, path: str | Path):
        store, name = at(path)
        self._open = ExitStack()
        sink = self._open.enter_context(store.writing(name))
        self._writer = self._open.enter_context(pa.ipc.new_file(str(sink), _ITEM))
        self._path, self._items, self._batches = str(path), list[bytes](), 0

    def add(self, item: bytes) -> None:
        """The next item."""
        self._items.append(item)
        if len(self._items) == FEW:
            self._write()

    def close(self) -> Spool:
        """The items, all written."""
        if self._items:
            self._write()
        self._open.close()
        return Spool(self._path, self._batches)

    def _write(self) -> None:
        self._writer.write_batch(
            pa.record_batch([pa.array(self._items, pa.binary())], schema=_ITEM)
        )
        self._items, self._batches = [], self._batches + 1


def spool(items: Iterable[bytes], path: str | Path) -> Spool:
    """Write items."""
    writer = ItemWriter(path)
    for item in items:
        writer.add(item)
    return writer.close()
