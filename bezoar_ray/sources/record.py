"""A row as a source holds it, before its shape is known, and how its fields are read."""

from dataclasses import dataclass

from bezoar_ray.data.schema import row_id

Row = dict[str, object]
"""The fields of a row, of any shape."""


@dataclass(frozen=True)
class Raw:
    """One row of a file or data set: a line of JSON, or its fields. `where` is "file:line"."""

    name: str
    number: int  # from 1, in file order
    where: str
    value: bytes | Row


@dataclass(frozen=True)
class Origin:
    """Where a seed or pair comes from."""

    source: str
    number: int
    license: str

    def id(self, kind: str) -> str:
        """The row's id: its source and number, never its text."""
        return row_id(kind, self.source, self.number)


def text(row: Row, field: str) -> str:
    """A field that may be absent, null or empty; a number is its digits, and pandas' NaN is null."""
    value = row.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = "" if value != value else str(value)
    return _text(value, field)


def _text(value: object, field: str) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"`{field}` holds {type(value).__name__}, not text")
    return as_text(value or "").strip()


def as_text(value: str) -> str:
    """A text with line breaks of one kind."""
    return value.replace("\r\n", "\n").replace("\r", "\n")


def required(row: Row, field: str) -> str:
    """A field that must hold text."""
    if field not in row:
        raise ValueError(f"no `{field}`")
    found = _text(row[field], field)
    if not found:
        raise ValueError(f"empty `{field}`")
    return found
