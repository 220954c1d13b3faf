"""Rated answers, in the format of nvidia/HelpSteer2 or with columns of their own.

HelpSteer2 (arXiv 2406.08673) has prompt, response, helpfulness, correctness, coherence,
complexity and verbosity. The attributes are rated from 0 to 4.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bezoar_ray.data.schema import ATTRIBUTES, HIGHEST_RATING, Rating
from bezoar_ray.recipe import RatingSource
from bezoar_ray.recipe.model_sections import Attribute, RatedField
from bezoar_ray.sources import conversations
from bezoar_ray.sources.record import Origin, Row, number, required, value_at

Columns = Mapping[RatedField, str]
"""Column of each field; one that is not named has the field's own name."""
Scale = tuple[float, float]
"""The lowest and the highest rating of a source."""

_NAME = "hub:nvidia/HelpSteer2"


@dataclass(frozen=True)
class _Published:
    """What is known of a split of HelpSteer2."""

    rows: int
    file_bytes: range
    """Possible sizes of its compressed file, which the Hub gives with three digits."""
    tolerance: float
    """How far mean and standard deviation may be from the published ones. Those are of
    both splits together. One standard error of the mean of helpfulness is 0.002 in
    train, and 0.04 in validation."""


_SPLITS = {
    "train": _Published(20_324, range(11_200_000, 11_400_000), 0.02),
    "validation": _Published(1_038, range(580_000, 584_000), 0.2),
}
_MEANS_AND_DEVIATIONS: dict[Attribute, tuple[float, float]] = {
    "helpfulness": (2.8655, 1.2703),
    "correctness": (2.9644, 1.2689),
    "coherence": (3.6393, 0.6491),
    "complexity": (1.7048, 0.6986),
    "verbosity": (1.9999, 0.7571),
}
"""Of all 21,362 rated answers (table 1 of the paper)."""


def rating(
    row: Row,
    origin: Origin,
    columns: Columns | None = None,
    scale: Scale = (0, HIGHEST_RATING),
) -> Rating:
    """Convert a row to a rated answer.

    A rating that is absent, null, NaN or "N/A" (as in UltraFeedback) becomes None.

    Args:
        row: the row.
        origin: where it comes from.
        columns: the columns of its fields.
        scale: the ratings that become 0 and 4.

    Raises:
        ValueError: the prompt or the response is missing or malformed, a rating is no
            number or not on the scale, or there is no rating at all.
    """
    columns = columns or {}
    prompt_column = columns.get("prompt", "prompt")
    response_column = columns.get("response", "response")
    prompt = conversations.read_prompt(value_at(row, prompt_column), prompt_column)
    response = value_at(row, response_column)
    ratings = [_rating(row, columns.get(name, name), scale) for name in ATTRIBUTES]
    if all(value is None for value in ratings):
        looked_for = ", ".join(columns.get(name, name) for name in ATTRIBUTES)
        raise ValueError(f"no rating (looked for {looked_for})")
    return Rating(
        id=origin.id("helpsteer"),
        source=origin.source,
        license=origin.license,
        prompt=prompt,
        response=required({response_column: response}, response_column),
        ratings=ratings,
    )


def _rating(row: Row, column: str, scale: Scale) -> float | None:
    """Read a rating, mapped from its scale to 0 to 4."""
    value = number(value_at(row, column), column)
    if value is None:
        return None
    lowest, highest = scale
    if not lowest <= value <= highest:
        raise ValueError(
            f"`{column}` is {value:g}, outside {lowest:g} to {highest:g}. Set `scale` "
            "to the lowest and highest rating of the source"
        )
    return (value - lowest) / (highest - lowest) * HIGHEST_RATING


def published_split(section: RatingSource) -> str | None:
    """Tell which split of the published HelpSteer2 a whole source is meant to be.

    Returns:
        `train` or `validation`. None for other sources, and for a part of HelpSteer2.
    """
    if section.limit:
        return None
    if section.source == _NAME:
        return section.split if section.split in _SPLITS else None
    path = Path(section.source)
    split = path.name.partition(".")[0]
    if split not in _SPLITS or not path.is_file():
        return None
    is_in_its_folder = path.resolve().parent.name.lower() == "helpsteer2"
    has_its_size = path.stat().st_size in _SPLITS[split].file_bytes
    return split if is_in_its_folder or has_its_size else None


def published_rows(section: RatingSource) -> int | None:
    """Return how many rows a whole split of HelpSteer2 has; None for other sources."""
    split = published_split(section)
    return _SPLITS[split].rows if split else None


def check_helpsteer2(
    ratings: Sequence[Rating], split: str, failed: int = 0
) -> list[str]:
    """Compare the rows of a split of HelpSteer2 with what is published about it.

    Args:
        ratings: the well-formed rows.
        split: `train` or `validation`.
        failed: number of malformed rows.

    Returns:
        One message for each difference; none where the rows are HelpSteer2.
    """
    published = _SPLITS[split]
    differences = []
    count = len(ratings) + failed
    if count != published.rows:
        differences.append(
            f"{count:,} rows in {split}, where HelpSteer2 has {published.rows:,}"
        )
    for index, name in enumerate(ATTRIBUTES):
        values = [row.ratings[index] for row in ratings]
        known = [value for value in values if value is not None]
        differences += _compare(name, known, published.tolerance)
    return differences


def _compare(name: Attribute, values: list[float], tolerance: float) -> Iterator[str]:
    """Yield how the ratings of an attribute differ from the published ones."""
    if not values:
        yield f"no rating of {name}"
        return
    mean, deviation = _MEANS_AND_DEVIATIONS[name]
    found = {
        "mean": (statistics.fmean(values), mean),
        "standard deviation": (statistics.pstdev(values), deviation),
    }
    for what, (value, expected) in found.items():
        if abs(value - expected) > tolerance:
            yield (
                f"the {what} of {name} is {value:.3f}, where HelpSteer2 has "
                f"{expected:.3f} (tolerance {tolerance:g})"
            )
