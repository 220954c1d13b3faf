"""Conversations as data sets hold them: lists of messages, ShareGPT's turns, or transcripts of Human and Assistant."""

import re

from bezoar_ray.sources.record import as_text

Messages = list[dict[str, str]]

_MARK = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}


def read(value: object, field: str) -> Messages:
    """The messages of a field: a list of `role` and `content` (or `from` and `value`), or a transcript.

    Raises:
        ValueError: neither, an empty turn, an unknown role, or turns that do not alternate after a system message.
    """
    try:
        found = (
            transcript(value)
            if isinstance(value, str)
            else [_message(turn) for turn in _list(value)]
        )
        found = found[1:] if found[0] == {"role": "system", "content": ""} else found
        _check(found)
    except ValueError as error:
        raise ValueError(f"`{field}`: {error}") from error
    return found


def is_transcript(value: object) -> bool:
    """Whether a text has the marks of a transcript at its beginning."""
    return isinstance(value, str) and bool(
        _MARK.match(as_text(value)) or _MARK.match(f"\n\n{as_text(value)}")
    )


def transcript(text: str) -> Messages:
    """The turns of a transcript, whose marks stand at the start of a paragraph.

    Raises:
        ValueError: text before the first mark.
    """
    head, *parts = _MARK.split(as_text(text))
    if head.strip() or not parts:
        raise ValueError("it does not begin with 'Human:' or 'Assistant:'")
    return [
        {"role": _ROLES[who.lower()], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _list(value: object) -> list[object]:
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"expected a list of messages, found {type(value).__name__ if value else 'none'}"
        )
    return value


def _message(turn: object) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise ValueError(
            f"a message is {type(turn).__name__}, not an object with `role` and `content`"
        )
    who = str(turn.get("role") or turn.get("from") or "").lower()
    if who not in _ROLES:
        raise ValueError(
            f"a message has the role {who!r}; known are user, assistant and system"
        )
    said = turn.get("content", turn.get("value"))
    if isinstance(said, list):  # parts, as in TRL's data sets of images and text
        said = "".join(
            part.get("text") or "" for part in said if isinstance(part, dict)
        )
    if not isinstance(said, str | None):
        raise ValueError(f"a message holds {type(said).__name__}, not text")
    return {"role": _ROLES[who], "content": as_text(said or "").strip()}


def _check(turns: Messages) -> None:
    if not turns:
        raise ValueError("there is no turn")
    if not all(turn["content"] for turn in turns):
        raise ValueError("a turn is empty")
    roles = [turn["role"] for turn in turns]
    if "system" in roles[1:]:
        raise ValueError("a system message does not stand first")
    if any(one == other for one, other in zip(roles, roles[1:], strict=False)):
        raise ValueError("two turns of one side in a row")
