"""Asking a judge: what is judged stands in the question as data, and a reply that cannot be read is asked for again."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from bezoar_ray.llm.chat import Chat, Messages, Sampling, unread

T = TypeVar("T")

_ATTEMPTS = 2


@dataclass(frozen=True)
class JudgeReply(Generic[T]):
    """What a judge's last reply holds, the reply, and why it was not read, where that is not in its text."""

    value: T | None
    text: str
    problem: str = ""


async def request_verdict(
    chat: Chat,
    messages: Messages,
    step: str,
    read: Callable[[str], T | None],
    form: str,
    sampling: Sampling | None = None,
) -> JudgeReply[T]:
    """Ask, and ask once more after a reply that holds nothing; the judge is told why.

    At temperature 0 the same question would be answered in the same way.

    Args:
        chat: the judge.
        messages: the question.
        step: of the ledger's key.
        read: what a reply holds, or None. A reply that is cut off is not read.
        form: in words, what the reply has to hold.
        sampling: in place of the recipe's.

    Raises:
        CallFailed: the judge gives no reply.
    """
    asked = messages
    for attempt in range(_ATTEMPTS):
        reply = await chat(asked, step=step, attempt=attempt, sampling=sampling)
        why = unread(reply)
        value = None if why else read(reply.text)
        if value is not None:
            return JudgeReply(value, reply.text)
        asked = _again(messages, why or f"it held no {form} that could be read", form)
    return JudgeReply(None, reply.text, why)


def as_data(text: str, tags: str) -> str:
    """A text that cannot end the tags that it stands in, nor begin others.

    Args:
        text: what is judged.
        tags: a pattern of their names.
    """
    return re.sub(rf"<(/?)({tags})>", r"‹\1\2›", text, flags=re.IGNORECASE)


def _again(messages: Messages, why: str, form: str) -> Messages:
    *before, last = messages
    note = (
        f"\n\nYour last reply could not be used: {why}. "
        f"Be brief, and give the {form} in the form that was asked for."
    )
    return [*before, last | {"content": last["content"] + note}]
