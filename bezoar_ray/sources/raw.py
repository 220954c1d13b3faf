"""A row as a source holds it, before its shape is known, and how its fields are read."""

from dataclasses import dataclass
from typing import Any

from bezoar_ray.rows import row_id


@dataclass(frozen=True)
class Raw:
    """One row of a file or data set: a line of JSON, or its fields. `where` is "file:line"."""

    name: str
    number: int  # from 1, in file order
    where: str
    value: bytes | dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where a seed or pair comes from."""

    source: str
    number: int
    license: str

    def id(self, kind: str) -> str:
        """The row's id: its source and number, never its text."""
        return row_id(kind, self.source, self.number)


def text(row: dict[str, Any], field: str) -> str:
    """A field that may be absent, null or empty."""
    value = row.get(field)
    if not isinstance(value, str | None):
        raise ValueError(f"`{field}` holds {type(value).__name__}, not text")
    return (value or "").strip()


def required(row: dict[str, Any], field: str) -> str:
    """A field that must hold text."""
    if field not in row:
        raise ValueError(f"no `{field}`")
    found = text(row, field)
    if not found:
        raise ValueError(f"empty `{field}`")
    return found
