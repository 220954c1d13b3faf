"""Where rows come from: the embedded world, data sets on the Hub, and files.

Each row knows its source and its license.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, Literal, TypeVar

import orjson

from bezoar_ray.data.schema import ATTRIBUTES, Pair, Preference, Rating, Sample, Seed
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import RatingSource, SourceSection
from bezoar_ray.runtime.embedded_world import find_ratings, find_world
from bezoar_ray.sources import (
    custom_rows,
    dolly,
    flan,
    helpsteer,
    hh_rlhf,
    hub_rows,
    preferences,
    row_files,
)
from bezoar_ray.sources.record import Origin, Raw, Row

T = TypeVar("T", Seed, Pair, Preference, Rating, Sample)

Convert = Callable[[Row, Origin], T | None]
"""Converts a row; gives None for one that was not asked for. Raises `ValueError` for a
malformed one."""

_SEEDS = {"dolly": dolly.seed, "flan": flan.seed}
_TINY_LICENSE = "Apache-2.0 (embedded)"


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """The well-formed rows of some sources, and what is wrong with the others."""

    rows: list[T]
    failed: list[str]
    """One message ("file:line: fault") for each malformed row."""


def read(
    sources: Iterable[SourceSection], kind: Literal["dolly", "flan"]
) -> Loaded[Seed]:
    """Read the seeds of all sources, in their order.

    Raises:
        RecipeError: a file or data set cannot be read at all; the message names the
            field and the remedy.
    """
    return _load(sources, f"seeds.{kind}", _SEEDS[kind])


def read_pairs(sources: Iterable[SourceSection]) -> Loaded[Pair]:
    """Read the preference pairs of all sources, in their order.

    Raises:
        RecipeError: as `read` does.
    """
    return _load(sources, "seeds.hh_rlhf", hh_rlhf.pair)


def read_ratings(sections: Iterable[RatingSource]) -> Loaded[Rating]:
    """Read the rated answers of all sources, in their order.

    Raises:
        RecipeError: as `read` does; no row has a rating in a column that the source
            names; or a source is HelpSteer2 and differs from what is published.
    """
    rows: list[Rating] = []
    failed: list[str] = []
    name_counts: dict[str, int] = {}
    for section in sections:
        convert = partial(helpsteer.rating, columns=section.fields, scale=section.scale)
        failed_before = len(failed)
        ratings = list(
            _stream_section(
                section, "seeds.helpsteer", convert, failed.append, name_counts
            )
        )
        _check_columns(section, ratings)
        _check_published(section, ratings, len(failed) - failed_before)
        rows += ratings
    return Loaded(rows, failed)


def _check_columns(section: RatingSource, ratings: list[Rating]) -> None:
    """Check that each column that a source names for an attribute has a rating.

    A missing rating is no error in a row, so a misspelt column would go unnoticed.
    """
    for index, name in enumerate(ATTRIBUTES):
        if name not in section.fields or not ratings:
            continue
        if all(row.ratings[index] is None for row in ratings):
            raise RecipeError(
                f"seeds.helpsteer: no row of {section.source!r} has a rating in "
                f"{section.fields[name]!r} (fields.{name}). Check the column's name, "
                "or leave the field out"
            )


def _check_published(section: RatingSource, ratings: list[Rating], failed: int) -> None:
    split = helpsteer.published_split(section)
    if split is None:
        return
    differences = helpsteer.check_helpsteer2(ratings, split, failed)
    if differences:
        raise RecipeError(
            f"seeds.helpsteer: {section.source!r} is not HelpSteer2 as published: "
            f"{'; '.join(differences)}. Download it again. To use a part of it, set "
            "`limit`"
        )


def read_preferences(sections: Iterable[SourceSection]) -> Loaded[Preference]:
    """Read the preferences of all sources, in their order.

    Raises:
        RecipeError: as `read` does.
    """
    rows: list[Preference] = []
    failed: list[str] = []
    name_counts: dict[str, int] = {}
    for section in sections:
        convert = partial(preferences.preference, split=section.split)
        rows += _stream_section(
            section, "seeds.preferences", convert, failed.append, name_counts
        )
    return Loaded(rows, failed)


def read_own(source: SourceSection, name: str) -> Loaded[Sample]:
    """Read the custom rows of `sft.data.<name>`.

    Raises:
        RecipeError: as `read` does.
    """
    return _load([source], f"sft.data.{name}", partial(custom_rows.sample, name))


def stream(
    sources: Iterable[SourceSection],
    kind: Literal["dolly", "flan"],
    failed: Callable[[str], None],
) -> Iterator[Seed]:
    """Read the seeds of all sources one by one, so that memory does not hold them all.

    Args:
        sources: sections of the recipe.
        kind: format of the rows.
        failed: called with the message of each malformed row.

    Raises:
        RecipeError: as `read` does.
    """
    return _stream(sources, f"seeds.{kind}", _SEEDS[kind], failed)


def read_fields(source: SourceSection, field: str) -> Iterator[tuple[str, Row]]:
    """Read the rows of a source as they are, whatever their columns.

    Yields:
        "file:line", and the fields of the row.

    Raises:
        RecipeError: as `read` does, or a row is malformed.
    """
    for raw in islice(_raw_rows(source, field), source.limit):
        try:
            fields = _fields(raw.value)
        except ValueError as error:
            raise RecipeError(f"{field}: {raw.where}: {error}") from error
        yield raw.where, fields


def _load(
    sources: Iterable[SourceSection], field: str, convert: Convert[T]
) -> Loaded[T]:
    failed: list[str] = []
    rows = list(_stream(sources, field, convert, failed.append))
    return Loaded(rows, failed)


def _stream(
    sources: Iterable[SourceSection],
    field: str,
    convert: Convert[T],
    failed: Callable[[str], None],
) -> Iterator[T]:
    name_counts: dict[str, int] = {}
    for section in sources:
        yield from _stream_section(section, field, convert, failed, name_counts)


def _stream_section(
    section: SourceSection,
    field: str,
    convert: Convert[T],
    failed: Callable[[str], None],
    name_counts: dict[str, int],
) -> Iterator[T]:
    """Read the rows of one source.

    Args:
        section: the source.
        field: the recipe's field, for errors.
        convert: makes a row of its fields.
        failed: called with the message of each malformed row.
        name_counts: how many files of each name were read before; it is updated.
    """
    license_name = _license(section)
    # Row ids are made of a file's name and a line number. A second file with the same
    # name gets a number, so that ids stay apart.
    unique_names: dict[str, str] = {}
    for raw in islice(_raw_rows(section, field), section.limit):
        file = raw.where.rpartition(":")[0]
        if file not in unique_names:
            count = name_counts.get(raw.name, 0) + 1
            name_counts[raw.name] = count
            unique_names[file] = raw.name if count == 1 else f"{raw.name}#{count}"
        origin = Origin(unique_names[file], raw.number, license_name)
        try:
            row = convert(_fields(raw.value), origin)
        except ValueError as error:
            failed(f"{raw.where}: {error}")
            continue
        if row is not None:
            yield row


def _raw_rows(source: SourceSection, field: str) -> Iterator[Raw]:
    if source.source == "tiny":
        # `tiny` as custom rows (sft.data) are the embedded dolly rows.
        kind = field.removeprefix("seeds.") if field.startswith("seeds.") else "dolly"
        is_rated = kind in ("helpsteer", "preferences")
        files = find_ratings() if is_rated else find_world()
        path = getattr(files, kind)
        return row_files.rows(str(path), field, name="tiny")
    if source.source.startswith("hub:"):
        return hub_rows.rows(source, field)
    return row_files.rows(source.source, field)


def _license(source: SourceSection) -> str:
    if source.source == "tiny" and source.license == "unknown":
        return _TINY_LICENSE
    return source.license


def _parse_json(line: bytes) -> object:
    """Parse a line of JSON.

    NaN and Infinity, which Python and pandas write, become null.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        if b"NaN" not in line and b"Infinity" not in line:
            raise
        value = json.loads(line, parse_constant=lambda name: None)
        # Unlike json, orjson refuses lone surrogates: going through it keeps them out.
        return orjson.loads(orjson.dumps(value))


def _fields(value: bytes | Row) -> Row:
    """The fields of a row.

    A line of text is parsed here, not in its file's reader, so that a torn line counts
    as a malformed row.
    """
    try:
        fields = _parse_json(value) if isinstance(value, bytes) else value
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(
            f"expected an object with fields, found {type(fields).__name__}"
        )
    return fields
