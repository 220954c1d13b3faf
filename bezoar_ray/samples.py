"""The samples of a run directory: `data/<scheme>/<status>/part-*.parquet`, where the stages meet."""

from bezoar_ray.rows import Sample, sample_schema, sample_table
from bezoar_ray.store import Store

ROWS_PER_FILE = 50_000


def read_samples(store: Store, scheme: str, status: str) -> list[Sample]:
    """The samples of one scheme and status, in the order of their ids."""
    table = store.read_table(f"data/{scheme}/{status}", sample_schema())
    return [Sample.from_row(row) for row in table.to_pylist()]


def write_samples(store: Store, scheme: str, status: str, samples: list[Sample]) -> list[str]:
    """Write the samples of one scheme and status anew, sorted by id; the names of the files."""
    folder = f"data/{scheme}/{status}"
    store.remove(folder)
    ordered = sorted(samples, key=lambda sample: sample.id)
    names = []
    for start in range(0, len(ordered), ROWS_PER_FILE):
        names.append(f"{folder}/part-{len(names):05}.parquet")
        store.replace_table(names[-1], sample_table(ordered[start : start + ROWS_PER_FILE]))
    return names
