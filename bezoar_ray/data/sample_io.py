"""The samples of a run directory: `data/<scheme>/<status>/part-*.parquet`."""

import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import pyarrow.parquet as pq

from bezoar_ray import layout
from bezoar_ray.data.row import decode_row, encode_row
from bezoar_ray.data.schema import Sample, sample_table
from bezoar_ray.errors import BezoarError
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.store import Store

ROWS_PER_FILE = 10_000
_ROWS_AT_A_TIME = 500


def sample_files(store: Store, scheme: str, status: str) -> list[str]:
    """Return the valid files of one scheme and status: those that a manifest lists.

    Where the stage has no manifest, because it failed, or a manifest without files, all
    Parquet files of the folder are valid.

    Raises:
        BezoarError: A listed file is missing.
    """
    folder = layout.samples(scheme, status)
    stage = "generate" if status == "generated" else "filter"
    existing = store.list(folder, ".parquet")
    manifest = store.read_json(layout.manifest(stage)) or {}
    listed = manifest.get("files")
    if not listed:
        return existing
    valid = sorted(name for name in listed if name.startswith(f"{folder}/"))
    missing = sorted(set(valid) - set(existing))
    if missing:
        raise BezoarError(
            f"{store.root}/{missing[0]} is missing, although manifests/{stage}.json "
            "lists it. Put it back, or run `bezoar run` to make it again: it redoes "
            f"the stage {stage}, and the stages after it"
        )
    return valid


def read_samples(store: Store, scheme: str, status: str) -> list[Sample]:
    """Return the samples of one scheme and status, in the order of their ids."""
    return list(iter_samples(store, scheme, status))


def iter_samples(store: Store, scheme: str, status: str) -> Iterator[Sample]:
    """Yield the samples of one scheme and status, with a few hundred in memory."""
    for name in sample_files(store, scheme, status):
        with pq.ParquetFile(store.open(name)) as file:
            for batch in file.iter_batches(_ROWS_AT_A_TIME):
                for row in batch.to_pylist():
                    yield Sample.from_row(row)


def count_samples(store: Store, scheme: str, status: str) -> int:
    """Return the number of samples of one scheme and status."""
    total = 0
    for name in sample_files(store, scheme, status):
        total += pq.read_metadata(store.open(name)).num_rows
    return total


class SampleFiles:
    """Replaces the samples of some folders, file by file.

    Give it samples in the order of their ids, a few thousand at a time.
    """

    def __init__(self, store: Store, schemes: Iterable[str], statuses: Iterable[str]):
        self._store = store
        self._file_counts: Counter[str] = Counter()
        self.names: list[str] = []
        """The files written so far."""
        statuses = list(statuses)
        for scheme in schemes:
            for status in statuses:
                # Files of an attempt that failed would count, as
                # it has left no manifest.
                store.remove(layout.samples(scheme, status))

    def write(self, samples: Iterable[Sample], status: str | None = None) -> None:
        """Write the next samples, one file for each folder.

        Args:
            samples: The samples.
            status: Write to the folders of this status rather than of each sample's.
        """
        by_folder: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            folder = layout.samples(sample.scheme, status or sample.status)
            by_folder[folder].append(sample)
        for folder, of_folder in by_folder.items():
            name = f"{folder}/part-{self._file_counts[folder]:05}.parquet"
            self._store.replace_table(name, sample_table(of_folder))
            self.names.append(name)
            self._file_counts[folder] += 1


class ExternalSorter:
    """Sorts samples by id on disk, with about `ROWS_PER_FILE` of them in memory.

    Ids are hashes, so their first digits divide the samples into files of about the
    same size, each of which is then sorted in memory.
    """

    def __init__(self, expected: int):
        self._folder = tempfile.TemporaryDirectory(prefix="bezoar-")
        self._expected = expected
        count = max(1, math.ceil(expected / ROWS_PER_FILE))
        paths = [Path(self._folder.name, f"{number:05}") for number in range(count)]
        self._files = [open(path, "w+b") for path in paths]

    def add(self, sample: Sample) -> None:
        """Add one sample."""
        # The first 8 hex digits are a number below 2**32: scale it to the files.
        file_index = int(sample.id[:8], 16) * len(self._files) >> 32
        self._files[file_index].write(encode_row(sample) + b"\n")

    def fill(self, samples: Iterable[Sample], progress: Progress) -> None:
        """Add all samples as they arrive, and show the progress."""
        for done, sample in enumerate(samples, 1):
            self.add(sample)
            progress.update(done, self._expected)

    def __iter__(self) -> Iterator[list[Sample]]:
        """Yield the samples in the order of their ids, in lists of some thousands."""
        for file in self._files:
            file.seek(0)
            samples = [decode_row(line, Sample) for line in file]
            yield sorted(samples, key=lambda sample: sample.id)

    def __enter__(self) -> "ExternalSorter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
        self._folder.cleanup()
