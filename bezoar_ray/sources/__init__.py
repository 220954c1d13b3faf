"""Where rows come from: the embedded world, hub data sets, own files. Each row knows its source and licence."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, Literal, TypeVar

import orjson

from bezoar_ray.data.schema import Pair, Sample, Seed
from bezoar_ray.recipe import SourceSection
from bezoar_ray.sources import custom_rows, dolly, flan, hh_rlhf, hub_rows, row_files
from bezoar_ray.sources.record import Origin, Raw, Row

T = TypeVar("T", Seed, Pair, Sample)

_SEEDS = {"dolly": dolly.seed, "flan": flan.seed}
_TINY_LICENSE = "Apache-2.0 (embedded)"


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """The rows that could be read, and one message ("file:line: what") for each malformed one."""

    rows: list[T]
    failed: list[str]


def read(
    parts: Iterable[SourceSection], kind: Literal["dolly", "flan"]
) -> Loaded[Seed]:
    """The seeds of all sources, in their order.

    Raises:
        RecipeError: a file or data set cannot be read at all; the message names the field and what to do.
    """
    return _load(parts, f"seeds.{kind}", _SEEDS[kind])


def read_pairs(parts: Iterable[SourceSection]) -> Loaded[Pair]:
    """The preference pairs of all sources, in their order. Raises as `read` does."""
    return _load(parts, "seeds.hh_rlhf", hh_rlhf.pair)


def read_own(part: SourceSection, name: str) -> Loaded[Sample]:
    """The rows of `sft.data.<name>`. Raises as `read` does."""
    return _load([part], f"sft.data.{name}", partial(custom_rows.sample, name))


def stream(
    parts: Iterable[SourceSection],
    kind: Literal["dolly", "flan"],
    failed: Callable[[str], None],
) -> Iterator[Seed]:
    """The seeds of all sources, one after the other; `failed` is told of each malformed one. Raises as `read` does."""
    return _stream(parts, f"seeds.{kind}", _SEEDS[kind], failed)


def _load(
    parts: Iterable[SourceSection], field: str, convert: Callable[[Row, Origin], T]
) -> Loaded[T]:
    failed: list[str] = []
    return Loaded(list(_stream(parts, field, convert, failed.append)), failed)


def _stream(
    parts: Iterable[SourceSection],
    field: str,
    convert: Callable[[Row, Origin], T],
    failed: Callable[[str], None],
) -> Iterator[T]:
    times_seen: dict[str, int] = {}
    for part in parts:
        renamed: dict[
            str, str
        ] = {}  # by file; a name that another file has used gets a number: ids stay apart
        for raw in islice(_raw(part, field), part.limit):
            file = raw.where.rpartition(":")[0]
            if file not in renamed:
                times_seen[raw.name] = times_seen.get(raw.name, 0) + 1
                renamed[file] = (
                    raw.name
                    if times_seen[raw.name] == 1
                    else f"{raw.name}#{times_seen[raw.name]}"
                )
            origin = Origin(renamed[file], raw.number, _license(part))
            try:
                yield convert(_fields(raw.value), origin)
            except ValueError as error:
                failed(f"{raw.where}: {error}")


def _raw(part: SourceSection, field: str) -> Iterator[Raw]:
    if part.source == "tiny":
        from bezoar_ray.tiny import world

        kind = field.removeprefix("seeds.") if field.startswith("seeds.") else "dolly"
        return row_files.rows(str(getattr(world(), kind)), field, name="tiny")
    if part.source.startswith("hub:"):
        return hub_rows.rows(part, field)
    return row_files.rows(part.source, field)


def _license(part: SourceSection) -> str:
    return (
        _TINY_LICENSE
        if part.source == "tiny" and part.license == "unknown"
        else part.license
    )


def _parsed(line: bytes) -> object:
    """A line of JSON, or what Python and pandas write as such: NaN is null."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        if b"NaN" not in line and b"Infinity" not in line:
            raise
        return orjson.loads(
            orjson.dumps(json.loads(line, parse_constant=lambda name: None))
        )  # no half characters


def _fields(value: bytes | Row) -> Row:
    """A row's fields; a line of text is parsed here, so that a torn one is a malformed row."""
    try:
        fields = _parsed(value) if isinstance(value, bytes) else value
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(
            f"expected an object with fields, found {type(fields).__name__}"
        )
    return fields
