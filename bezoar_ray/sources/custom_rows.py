"""Rows of one's own for sft: an instruction and its answer, as in dolly, Alpaca or our own samples, or a conversation.

A conversation is `messages` (`role`, `content`) or ShareGPT's `conversations` (`from`, `value`), with any number of
turns; it ends with an answer, and may begin with a system message.
"""

from typing import Any

from bezoar_ray.data.schema import Sample
from bezoar_ray.sources import conversations
from bezoar_ray.sources.record import Origin, Row, required, text

_INPUTS, _ANSWERS = ("input", "context"), ("response", "output", "answer")
_CONVERSATIONS = ("messages", "conversations")


def sample(scheme: str, row: Row, origin: Origin) -> Sample:
    """One row. Raises `ValueError` for a missing or empty instruction or answer, or a field that is not text."""
    field = next((name for name in _CONVERSATIONS if row.get(name)), None)
    said = _turns(row, field) if field else _single(row)
    return Sample(
        id=origin.id(f"own.{scheme}"),
        scheme=scheme,
        operation="own",
        **said,
        seed_sources=[origin.source],
        seed_licenses=[origin.license],
        status="accepted",
    )


def _single(row: Row) -> dict[str, Any]:
    return {
        "system": text(row, "system"),
        "instruction": required(row, "instruction"),
        "input": text(row, _first(_INPUTS, row)),
        "response": required(row, _first(_ANSWERS, row)),
    }


def _turns(row: Row, field: str) -> dict[str, Any]:
    turns = conversations.read(row[field], field)
    if turns[-1]["role"] == "user":  # ShareGPT's rows often end with a question
        turns = turns[:-1]
    system = (
        turns.pop(0)["content"]
        if turns and turns[0]["role"] == "system"
        else text(row, "system")
    )
    if len(turns) < 2 or turns[0]["role"] != "user":
        raise ValueError(f"`{field}`: there is no answer to a question")
    *history, asked, answer = turns
    return {
        "system": system,
        "history": history,
        "instruction": asked["content"],
        "response": answer["content"],
    }


def _first(names: tuple[str, ...], row: Row) -> str:
    """The first of some fields that holds something: in a table every row has every column."""
    return next((name for name in names if row.get(name) not in (None, "")), names[0])
