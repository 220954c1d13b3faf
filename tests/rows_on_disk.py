"""Samples in a run directory, as a stage would have left them."""

from bezoar_ray.data.sample_io import SampleFiles
from bezoar_ray.data.schema import Sample
from bezoar_ray.store import Store


def write_samples(
    store: Store, scheme: str, status: str, samples: list[Sample]
) -> list[str]:
    """The names of the files; none is written where there are no samples."""
    files = SampleFiles(store, [scheme], [status])
    files.write(sorted(samples, key=lambda sample: sample.id), status)
    return files.names
