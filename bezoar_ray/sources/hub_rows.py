"""Rows of a Hugging Face data set, streamed at a pinned revision."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import SourceSection
from bezoar_ray.sources.record import Raw

if TYPE_CHECKING:
    from datasets import IterableDataset


def rows(part: SourceSection, field: str) -> Iterator[Raw]:
    """The rows of `hub:<owner>/<name>[:<config>]`, in the data set's order.

    Raises:
        RecipeError: no revision is given, or the hub does not deliver.
    """
    name, _, config = part.source.removeprefix("hub:").partition(":")
    if not part.revision:
        raise RecipeError(
            f"{field}: {part.source!r} needs `revision`: pin the commit, so that the rows stay the same"
        )
    try:
        for number, row in enumerate(_stream(name, config or None, part), start=1):
            yield Raw(part.source, number, f"{part.source}:{number}", row)
    except (
        OSError,
        ValueError,
    ) as error:  # datasets' and huggingface_hub's errors are either
        raise RecipeError(
            f"{field}: cannot read {part.source!r} at revision {part.revision!r}, split {part.split!r}: {error}. "
            "Check name, revision and network, or give local files."
        ) from error


def _stream(name: str, config: str | None, part: SourceSection) -> "IterableDataset":
    from datasets import load_dataset

    return load_dataset(
        name, config, split=part.split, revision=part.revision, streaming=True
    )
