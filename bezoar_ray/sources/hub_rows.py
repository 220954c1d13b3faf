"""Rows of a data set on the Hugging Face Hub, streamed at a pinned revision."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import SourceSection
from bezoar_ray.sources.record import Raw

if TYPE_CHECKING:
    from datasets import IterableDataset


def rows(section: SourceSection, field: str) -> Iterator[Raw]:
    """Read the rows of `hub:<owner>/<name>[:<config>]`, in the data set's order.

    Args:
        section: the source, with its revision and split.
        field: the recipe's field, for errors.

    Raises:
        RecipeError: the section has no revision, or the Hub does not deliver.
    """
    source = section.source
    name, _, config = source.removeprefix("hub:").partition(":")
    if not section.revision:
        raise RecipeError(
            f"{field}: {source!r} needs `revision`: pin the commit, so that the rows "
            "stay the same"
        )
    try:
        stream = _stream(name, config or None, section)
        for number, row in enumerate(stream, start=1):
            yield Raw(source, number, f"{source}:{number}", row)
    except (OSError, ValueError) as error:
        # All errors of datasets and huggingface_hub are one of these two.
        raise RecipeError(
            f"{field}: cannot read {source!r} at revision {section.revision!r}, "
            f"split {section.split!r}: {error}. Check name, revision and network, or "
            "give local files."
        ) from error


def _stream(name: str, config: str | None, section: SourceSection) -> "IterableDataset":
    from datasets import load_dataset

    return load_dataset(
        name,
        config,
        split=section.split,
        revision=section.revision,
        streaming=True,
    )
