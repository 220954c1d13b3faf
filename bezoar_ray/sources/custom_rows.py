"""Custom rows for sft: an instruction with its response, or a conversation.

Single rows have the fields of dolly, Alpaca or this package's samples, or TRL's
`prompt` and `completion`. A conversation is `messages` (`role`, `content`) or
ShareGPT's `conversations` (`from`, `value`), with any number of turns, or TRL's
`prompt` and `completion` as lists of messages. It ends with an answer, and may begin
with a system message.
"""

from typing import Any

from bezoar_ray.data.schema import Sample
from bezoar_ray.sources import conversations
from bezoar_ray.sources.record import Origin, Row, required, text

# Names that data sets give to one field, in the order in which they are looked for.
_INPUTS = ("input", "context")
_RESPONSES = ("response", "output", "answer", "completion")
_CONVERSATIONS = ("messages", "conversations")


def sample(scheme: str, row: Row, origin: Origin) -> Sample:
    """Convert a custom row to an accepted sample.

    Raises:
        ValueError: the instruction or response is missing or empty, or a field is not
            text.
    """
    fields = _read_fields(row)
    return Sample(
        id=origin.id(f"own.{scheme}"),
        scheme=scheme,
        operation="own",
        **fields,
        seed_sources=[origin.source],
        seed_licenses=[origin.license],
        status="accepted",
    )


def _read_fields(row: Row) -> dict[str, Any]:
    for name in _CONVERSATIONS:
        if row.get(name):
            return _read_conversation(row, row[name], name)
    if not row.get("completion"):
        return _read_single(row, "instruction")
    prompt = row.get("prompt")
    completion = row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _read_conversation(row, [*prompt, *completion], "completion")
    return _read_single(row, "prompt")


def _read_single(row: Row, instruction: str) -> dict[str, Any]:
    return {
        "system": text(row, "system"),
        "instruction": required(row, instruction),
        "input": text(row, _first_present(_INPUTS, row)),
        "response": required(row, _first_present(_RESPONSES, row)),
    }


def _read_conversation(row: Row, value: object, field: str) -> dict[str, Any]:
    turns = conversations.read(value, field)
    if turns[-1]["role"] == "user":  # ShareGPT's rows often end with a question.
        turns = turns[:-1]
    if turns and turns[0]["role"] == "system":
        system = turns[0]["content"]
        turns = turns[1:]
    else:
        system = text(row, "system")
    if len(turns) < 2 or turns[0]["role"] != "user":
        raise ValueError(f"`{field}`: there is no answer to a question")
    *history, question, answer = turns
    return {
        "system": system,
        "history": history,
        "instruction": question["content"],
        "response": answer["content"],
    }


def _first_present(names: tuple[str, ...], row: Row) -> str:
    """The first of some fields that is not empty; the first name where all are empty.

    In a table every row has every column, so presence alone says nothing.
    """
    for name in names:
        if row.get(name) not in (None, ""):
            return name
    return names[0]
