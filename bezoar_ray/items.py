"""Items on disk, and how they are divided into the cells that Ray works on."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

FEW = 4  # items in the smallest cell: of a small run, rows go on soon
_ENOUGH = 128  # cells for rows to go on soon; with more items, cells grow, as each costs Ray some 30 ms of CPU time
_MOST = 1024  # cells, whatever the number of items: the driver keeps a reference to each
_ITEM = pa.schema([("item", pa.binary())])


@dataclass(frozen=True)
class Items:
    """Items on disk, as an Arrow file with one record batch for each `FEW`: never all of them in memory.

    On a cluster the path has to be one that all nodes see.
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
        length = max(1, min(slots // FEW, self.batches // _ENOUGH), math.ceil(self.batches / _MOST))
        return [range(start, min(start + length, self.batches)) for start in range(0, self.batches, length)]

    def _items(self, batches: range) -> Iterator[bytes]:
        with pa.memory_map(self.path) as file:
            reader = pa.ipc.open_file(file)
            for number in batches:
                yield from reader.get_batch(number).column(0).to_pylist()


class ItemWriter:
    """Writes items one by one."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, _ITEM)
        self._path, self._items, self._batches = str(path), list[bytes](), 0

    def add(self, item: bytes) -> None:
        """The next item."""
        self._items.append(item)
        if len(self._items) == FEW:
            self._write()

    def close(self) -> Items:
        """The items, all written."""
        if self._items:
            self._write()
        self._writer.close()
        self._sink.close()
        return Items(self._path, self._batches)

    def _write(self) -> None:
        self._writer.write_batch(pa.record_batch([pa.array(self._items, pa.binary())], schema=_ITEM))
        self._items, self._batches = [], self._batches + 1


def spool(items: Iterable[bytes], path: Path) -> Items:
    """Write items."""
    writer = ItemWriter(path)
    for item in items:
        writer.add(item)
    return writer.close()
