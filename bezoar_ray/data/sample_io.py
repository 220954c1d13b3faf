"""The samples of a run directory: `data/<scheme>/<status>/part-*.parquet`, where the stages meet."""

import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
import pyarrow.parquet as pq

from bezoar_ray import layout
from bezoar_ray.data.schema import Sample, sample_table
from bezoar_ray.errors import BezoarError
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.store import Store

ROWS_PER_FILE = 10_000
_ROWS_AT_A_TIME = 500


def sample_files(store: Store, scheme: str, status: str) -> list[str]:
    """The files of one scheme and status that count: those that their stage's manifest lists.

    All Parquet files of the folder count where the stage has no manifest, because it failed, or one that lists no file.

    Raises:
        BezoarError: one that it lists is missing.
    """
    folder, stage = (
        layout.samples(scheme, status),
        "generate" if status == "generated" else "filter",
    )
    there = store.list(folder, ".parquet")
    listed = (store.read_json(layout.manifest(stage)) or {}).get("files")
    if not listed:
        return there
    counted = sorted(name for name in listed if name.startswith(f"{folder}/"))
    if missing := sorted(set(counted) - set(there)):
        raise BezoarError(
            f"{store.root}/{missing[0]} is missing, although manifests/{stage}.json lists it. Put it back, or let "
            f"`bezoar run` make it again: it redoes the stage {stage}, and those after it"
        )
    return counted


def read_samples(store: Store, scheme: str, status: str) -> list[Sample]:
    """The samples of one scheme and status, in the order of their ids."""
    return list(iter_samples(store, scheme, status))


def iter_samples(store: Store, scheme: str, status: str) -> Iterator[Sample]:
    """The same, some hundred at a time in memory."""
    for name in sample_files(store, scheme, status):
        with pq.ParquetFile(store.open(name)) as file:
            for batch in file.iter_batches(_ROWS_AT_A_TIME):
                yield from map(Sample.from_row, batch.to_pylist())


def count_samples(store: Store, scheme: str, status: str) -> int:
    """How many samples there are of one scheme and status."""
    return sum(
        pq.read_metadata(store.open(name)).num_rows
        for name in sample_files(store, scheme, status)
    )


class SampleFiles:
    """Writes the samples in some folders anew, some thousands in the order of their ids at a time."""

    def __init__(self, store: Store, schemes: Iterable[str], statuses: Iterable[str]):
        self._store = store
        self._counts: Counter[str] = Counter()
        self.names: list[str] = []
        for scheme, status in product(schemes, statuses):
            store.remove(layout.samples(scheme, status))

    def write(self, samples: Iterable[Sample], folder: str | None = None) -> None:
        """The next samples: each to the folder of its scheme and status, or to `folder` in the place of its status."""
        folders: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            folders[layout.samples(sample.scheme, folder or sample.status)].append(
                sample
            )
        for name, rows in folders.items():
            self.names.append(f"{name}/part-{self._counts[name]:05}.parquet")
            self._store.replace_table(self.names[-1], sample_table(rows))
            self._counts[name] += 1


class ExternalSorter:
    """Rows that come in any order, kept on disk, and read back in the order of their ids without holding them all."""

    def __init__(self, expected: int):
        self._folder = tempfile.TemporaryDirectory(prefix="bezoar-")
        self._expected = expected
        count = max(1, math.ceil(expected / ROWS_PER_FILE))
        self._files = [
            open(Path(self._folder.name, f"{n:05}"), "w+b") for n in range(count)
        ]

    def add(self, row: bytes) -> None:
        """One row: a line of JSON with an `id`."""
        place = int(orjson.loads(row)["id"][:8], 16) * len(self._files) >> 32
        self._files[place].write(row + b"\n")

    def fill(self, rows: Iterable[bytes], progress: Progress) -> None:
        """All rows, as they come."""
        for done, row in enumerate(rows, 1):
            self.add(row)
            progress.update(done, self._expected)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """The rows, in lists of some thousands."""
        for file in self._files:
            file.seek(0)
            yield sorted(map(orjson.loads, file), key=lambda row: row["id"])

    def __enter__(self) -> "ExternalSorter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
        self._folder.cleanup()
