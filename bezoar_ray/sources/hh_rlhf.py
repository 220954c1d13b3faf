"""Preference pairs: transcripts of Anthropic/hh-rlhf, or the forms that TRL knows.

TRL's forms (https://huggingface.co/docs/trl/dataset_formats) have `chosen` and
`rejected` as text or as lists of messages. Without a `prompt`, both sides hold the
whole conversation.
"""

from bezoar_ray.data.schema import Pair
from bezoar_ray.sources import conversations
from bezoar_ray.sources.conversations import Messages
from bezoar_ray.sources.record import Origin, Row, required


def pair(row: Row, origin: Origin) -> Pair:
    """Convert a row to a pair.

    Raises:
        ValueError: a side is not a conversation that ends with an answer, or the sides
            are not two answers to one prompt.
    """
    given_prompt = _prompt(row)
    prompt, chosen = _split(row, "chosen", given_prompt)
    other_prompt, rejected = _split(row, "rejected", given_prompt)
    if prompt != other_prompt:
        raise ValueError(
            "`chosen` and `rejected` differ before the last Assistant turn"
        )
    if chosen == rejected:
        raise ValueError("`chosen` and `rejected` are identical")
    return Pair(
        id=origin.id("hh_rlhf"),
        source=origin.source,
        license=origin.license,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
    )


def _prompt(row: Row) -> Messages:
    """The messages of the field `prompt`; none where a row lacks it."""
    value = row.get("prompt")
    if not value:
        return []
    if isinstance(value, str) and not conversations.is_transcript(value):
        return [{"role": "user", "content": required(row, "prompt")}]
    return conversations.read(value, "prompt")


def _split(row: Row, side: str, given_prompt: Messages) -> tuple[Messages, str]:
    """Split one side into the conversation before the last answer, and that answer."""
    value = row.get(side)
    if isinstance(value, list) or conversations.is_transcript(value):
        messages = conversations.read(value, side)
    elif given_prompt:
        messages = [{"role": "assistant", "content": required(row, side)}]
    else:
        required(row, side)
        raise ValueError(
            f"`{side}`: it does not begin with 'Human:' or 'Assistant:', and the row "
            "has no `prompt`. Known are transcripts, lists of messages, and texts beside a "
            "`prompt`"
        )
    # A side that begins with a user turn holds the whole conversation already.
    if given_prompt and messages[0]["role"] == "assistant":
        messages = [*given_prompt, *messages]
    *prompt, last = messages
    roles = [message["role"] for message in messages]
    if roles[-2:] != ["user", "assistant"]:
        raise ValueError(
            f"`{side}`: it does not end with an Assistant turn that answers a Human one"
        )
    return prompt, last["content"]
