"""Rows between model stages: typed in Python, one line of JSON on disk and in Ray."""

from typing import Any, Self, TypeVar

import orjson


class StageRow:
    """Base of the dataclasses that model stages read and yield.

    The fields of a subclass hold JSON values, or dataclasses and lists of such values.
    A row is JSON rather than a set of Arrow columns because the draws of a generation
    task have a different shape in every scheme.
    """

    id: str
    """Names the row in the ledger, together with the step of each of its calls."""

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """Build the row from its fields. Override it to build nested dataclasses."""
        return cls(**row)


R = TypeVar("R", bound=StageRow)


def encode_row(row: StageRow) -> bytes:
    """Return a row as one line of JSON, without the line break."""
    return orjson.dumps(row)


def decode_row(line: bytes, row_type: type[R]) -> R:
    """Return the row that `encode_row` wrote."""
    return row_type.from_row(orjson.loads(line))
