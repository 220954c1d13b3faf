"""Rows in the shape of Anthropic/hh-rlhf: transcripts `chosen` and `rejected`, equal up to the last turn."""

import re
from typing import Any

from bezoar_ray.rows import Pair
from bezoar_ray.sources.raw import Origin, required

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def pair(row: dict[str, Any], origin: Origin) -> Pair:
    """One pair. Raises `ValueError` where a side is no transcript, or the sides are no choice between two answers."""
    prompt, chosen = _split(required(row, "chosen"), "chosen")
    other_prompt, rejected = _split(required(row, "rejected"), "rejected")
    if prompt != other_prompt:
        raise ValueError("`chosen` and `rejected` differ before the last Assistant turn")
    if chosen == rejected:
        raise ValueError("`chosen` and `rejected` are identical")
    return Pair(origin.id("hh_rlhf"), origin.source, origin.license, prompt, chosen, rejected)


def messages(transcript: str) -> list[dict[str, str]]:
    """The turns of a transcript, whose marks stand at the start of a paragraph.

    Raises:
        ValueError: text before the first mark, an empty turn, or two turns of one side in a row.
    """
    head, *parts = _TURN.split(transcript)
    turns = [{"role": _ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if head.strip() or not turns:
        raise ValueError("it does not begin with 'Human:' or 'Assistant:'")
    if not all(turn["content"] for turn in turns):
        raise ValueError("a turn is empty")
    if any(one["role"] == next_one["role"] for one, next_one in zip(turns, turns[1:], strict=False)):
        raise ValueError("two turns of one side in a row")
    return turns


def _split(transcript: str, side: str) -> tuple[list[dict[str, str]], str]:
    """The conversation up to the last Assistant turn, and that turn."""
    try:
        *prompt, last = messages(transcript)
    except ValueError as error:
        raise ValueError(f"`{side}`: {error}") from error
    if last["role"] != "assistant" or not prompt:
        raise ValueError(f"`{side}`: it does not end with an Assistant turn that answers a Human one")
    return prompt, last["content"]
