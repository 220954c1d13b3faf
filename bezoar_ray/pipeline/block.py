"""Blocks: the form in which rows and errors pass between actors of a Ray Data graph.

One row of a Ray Data table holds one block. No other module knows its columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic

from bezoar_ray.data.row import R, decode_row, encode_row
from bezoar_ray.errors import BezoarError, BudgetReached, RecipeError, RunLocked

_ERROR_TYPES = {
    error_type.__name__: error_type
    for error_type in (BezoarError, RecipeError, RunLocked, BudgetReached)
}


@dataclass(frozen=True)
class Block(Generic[R]):
    """The rows that one actor task yields, or the error that ended it."""

    rows: list[R]
    error: BezoarError | None = None


def encode_block(block: Block[R]) -> dict[str, list[Any]]:
    """Return a block as a Ray Data batch of one table row.

    An error travels as the name of its class and its message. A pickled exception would
    need the same classes, and the same constructors, in both processes.
    """
    lines = [encode_row(row) for row in block.rows]
    kind = ""
    message = ""
    if block.error:
        kind = _error_kind(block.error)
        # Half a surrogate pair, as in a file name that is not UTF-8, is invalid in Arrow.
        message = str(block.error).encode(errors="backslashreplace").decode()
    return {
        "rows": [b"\n".join(lines)],
        "error_kind": [kind],
        "error_message": [message],
    }


def decode_block(columns: Mapping[str, Any], row_type: type[R]) -> Block[R]:
    """Return the block that one row of a Ray Data table holds, by column name."""
    if columns["error_kind"]:
        error_type = _ERROR_TYPES[columns["error_kind"]]
        return Block([], error_type(columns["error_message"]))
    # JSON escapes line breaks, so each one here ends a row.
    lines = columns["rows"].split(b"\n") if columns["rows"] else []
    return Block([decode_row(line, row_type) for line in lines])


def _error_kind(error: BezoarError) -> str:
    """Return the name of the closest class of an error that `decode_block` knows."""
    names = [error_type.__name__ for error_type in type(error).__mro__]
    return next(name for name in names if name in _ERROR_TYPES)
