"""Preference pairs: Anthropic/hh-rlhf's transcripts, or a prompt with `chosen` and `rejected` in the forms of TRL.

TRL's forms (https://huggingface.co/docs/trl/dataset_formats): prompt and answers as texts or as lists of messages; or
without a prompt, where both sides hold the whole conversation.
"""

from bezoar_ray.data.schema import Pair
from bezoar_ray.sources import conversations
from bezoar_ray.sources.conversations import Messages
from bezoar_ray.sources.record import Origin, Row, required


def pair(row: Row, origin: Origin) -> Pair:
    """One pair. Raises `ValueError` where a side is no conversation, or the sides are no choice between two answers."""
    begin = _prompt(row)
    prompt, chosen = _split(row, "chosen", begin)
    other_prompt, rejected = _split(row, "rejected", begin)
    if prompt != other_prompt:
        raise ValueError(
            "`chosen` and `rejected` differ before the last Assistant turn"
        )
    if chosen == rejected:
        raise ValueError("`chosen` and `rejected` are identical")
    return Pair(
        origin.id("hh_rlhf"), origin.source, origin.license, prompt, chosen, rejected
    )


def _prompt(row: Row) -> Messages:
    """The messages of the prompt; none where a row has no such field."""
    value = row.get("prompt")
    if not value:
        return []
    if isinstance(value, str) and not conversations.is_transcript(value):
        return [{"role": "user", "content": required(row, "prompt")}]
    return conversations.read(value, "prompt")


def _split(row: Row, side: str, begin: Messages) -> tuple[Messages, str]:
    """The conversation up to the last answer, and that answer."""
    value = row.get(side)
    if isinstance(value, list) or (
        isinstance(value, str) and conversations.is_transcript(value)
    ):
        said = conversations.read(value, side)
    elif begin:
        said = [{"role": "assistant", "content": required(row, side)}]
    else:
        required(row, side)
        raise ValueError(
            f"`{side}`: it does not begin with 'Human:' or 'Assistant:', and the row has no `prompt`. Known are "
            "transcripts, lists of messages, and texts beside a `prompt`"
        )
    continues = (
        begin and said[0]["role"] == "assistant"
    )  # else the side holds the whole conversation
    *prompt, last = [*begin, *said] if continues else said
    if last["role"] != "assistant" or not prompt or prompt[-1]["role"] != "user":
        raise ValueError(
            f"`{side}`: it does not end with an Assistant turn that answers a Human one"
        )
    return prompt, last["content"]
