"""A row in the form of its source, and how its fields are read."""

import math
from dataclasses import dataclass

from bezoar_ray.data.schema import row_id

Row = dict[str, object]
"""The fields of a row, in the format of its source."""


@dataclass(frozen=True)
class Raw:
    """One row of a file or data set, before its format is known."""

    name: str
    """Name of its file or data set, which enters the row's id."""
    number: int
    """Number of its line or row, from 1, in file order."""
    where: str
    """Where to look for it: "file:line"."""
    value: bytes | Row
    """A line of JSON, or the row's fields."""


@dataclass(frozen=True)
class Origin:
    """Where a seed, pair or custom row comes from."""

    source: str
    number: int
    license: str

    def id(self, kind: str) -> str:
        """The row's id: a hash of kind, source and number, never of its text."""
        return row_id(kind, self.source, self.number)


def text(row: Row, field: str) -> str:
    """The text of an optional field; empty where it is absent or null.

    A number is written as text. NaN counts as null, since pandas writes missing values
    so.

    Raises:
        ValueError: the field is not text.
    """
    value = row.get(field)
    if isinstance(value, float) and math.isnan(value):
        return ""
    # A bool is no text, although Python takes it for a number.
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return _text(value, field)


def required(row: Row, field: str) -> str:
    """The text of a field that must not be empty.

    Raises:
        ValueError: the field is missing, empty or not text.
    """
    if field not in row:
        raise ValueError(f"no `{field}`")
    content = _text(row[field], field)
    if not content:
        raise ValueError(f"empty `{field}`")
    return content


_NO_NUMBER = ("", "n/a", "nan", "null", "none")
"""How data sets write that there is no number, in lower case."""


def number(value: object, field: str) -> float | None:
    """The number that a field holds, as a number or as text.

    None where it is null, NaN, empty or "N/A".

    Raises:
        ValueError: the field holds something else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) and value.strip().lower() in _NO_NUMBER:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"`{field}` holds {type(value).__name__}, not a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"`{field}` is {value!r:.40}, not a number") from None


def value_at(row: Row, path: str) -> object:
    """The value at a path into objects and lists, such as `completions.0.response`.

    A column whose own name has dots comes first. None where there is no such value.
    """
    if path in row:
        return row[path]
    value: object = row
    for key in path.split("."):
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal():
            value = value[int(key)] if int(key) < len(value) else None
        else:
            return None
    return value


def as_text(value: str) -> str:
    """A text whose line breaks are all "\\n"."""
    return value.replace("\r\n", "\n").replace("\r", "\n")


def _text(value: object, field: str) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"`{field}` holds {type(value).__name__}, not text")
    return as_text(value or "").strip()
