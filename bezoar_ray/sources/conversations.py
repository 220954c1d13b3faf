"""Conversations in the forms that data sets have.

These are lists of messages, ShareGPT's turns, transcripts of Human and Assistant, and
HelpSteer2's prompts, whose turns begin with NeMo's markers.
"""

import re

from bezoar_ray.sources.record import as_text

Messages = list[dict[str, str]]

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_MARKER = re.compile(r"<extra_id_[01]>(System|User|Assistant)(?:\n|$)")
"""NeMo's markers, as in HelpSteer2. The first turn of a prompt has none there."""
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
"""Our role for each name that a data set uses."""


def read(value: object, field: str) -> Messages:
    """Read the messages of a field.

    Args:
        value: a transcript, or a list of objects with `role` and `content` (or `from`
            and `value`).
        field: name of the field, for errors.

    Raises:
        ValueError: the value has another form, an empty turn or an unknown role, or its
            turns do not alternate after an optional system message.
    """
    try:
        messages = _messages(value)
        # Data sets give rows without a system message an empty one.
        if messages[0] == {"role": "system", "content": ""}:
            messages = messages[1:]
        _check(messages)
    except ValueError as error:
        raise ValueError(f"`{field}`: {error}") from error
    return messages


def read_prompt(value: object, field: str) -> Messages:
    """Read a prompt: messages that end with the user's turn.

    Args:
        value: one message of a user as text, HelpSteer2's turns, or what `read` takes.
        field: name of the field, for errors.

    Raises:
        ValueError: the value is empty or has another form, or no user has the last
            turn.
    """
    if not isinstance(value, str):
        messages = read(value, field)
    else:
        turns = _prompt_turns(value)
        # An empty turn at the end only says who is to speak.
        if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]
        if turns == [{"role": "user", "content": ""}]:
            raise ValueError(f"empty `{field}`")
        messages = read(turns, field)
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"`{field}`: it ends with a turn of the {messages[-1]['role']}, not of the "
            "user"
        )
    return messages


def _prompt_turns(value: str) -> Messages:
    text = as_text(value)
    if is_transcript(text) and not _MARKER.search(text):
        return transcript(text)
    first_turn, *parts = _MARKER.split(text)
    turns = []
    if first_turn.strip() or not parts:
        turns.append({"role": "user", "content": first_turn.strip()})
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        turns.append({"role": _ROLES[speaker.lower()], "content": content.strip()})
    return turns


def is_transcript(value: object) -> bool:
    """Whether a value is text that begins with a speaker, such as "Human:"."""
    return isinstance(value, str) and bool(_SPEAKER.match(as_text(value)))


def transcript(text: str) -> Messages:
    """Split a transcript into turns. A speaker counts only at the start of a paragraph.

    Raises:
        ValueError: the text does not begin with a speaker.
    """
    before, *parts = _SPEAKER.split(as_text(text))
    if before.strip() or not parts:
        raise ValueError("it does not begin with 'Human:' or 'Assistant:'")
    speakers = parts[::2]
    contents = parts[1::2]
    return [
        {"role": _ROLES[speaker.lower()], "content": content.strip()}
        for speaker, content in zip(speakers, contents, strict=True)
    ]


def _messages(value: object) -> Messages:
    if isinstance(value, str):
        return transcript(value)
    if not isinstance(value, list) or not value:
        kind = type(value).__name__ if value else "none"
        raise ValueError(f"expected a list of messages, found {kind}")
    return [_message(turn) for turn in value]


def _message(turn: object) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise ValueError(
            f"a message is {type(turn).__name__}, not an object with `role` and "
            "`content`"
        )
    speaker = turn.get("role") or turn.get("from") or ""
    role = str(speaker).lower()
    if role not in _ROLES:
        raise ValueError(
            f"a message has the role {role!r}; known are user, assistant and system"
        )
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        # TRL's data sets of images and text have a list of parts.
        parts = [part for part in content if isinstance(part, dict)]
        content = "".join(part.get("text") or "" for part in parts)
    if not isinstance(content, str | None):
        raise ValueError(f"a message holds {type(content).__name__}, not text")
    return {"role": _ROLES[role], "content": as_text(content or "").strip()}


def _check(turns: Messages) -> None:
    """Raise `ValueError` for turns that no chat template would render as meant."""
    if not turns:
        raise ValueError("there is no turn")
    if not all(turn["content"] for turn in turns):
        raise ValueError("a turn is empty")
    roles = [turn["role"] for turn in turns]
    if "system" in roles[1:]:
        raise ValueError("a system message is not the first message")
    for role, next_role in zip(roles, roles[1:], strict=False):
        if role == next_role:
            raise ValueError(f"two {role} turns follow each other")
