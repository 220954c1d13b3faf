"""Ask a judge: a reply that cannot be read is asked for once more.

The text that is judged goes into the question as data, between tags that it cannot
close.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from bezoar_ray.llm.chat import Chat, Messages, Sampling, cut_off_reason

T = TypeVar("T")

_ATTEMPTS = 2


@dataclass(frozen=True)
class JudgeReply(Generic[T]):
    """A judge's last reply, and the value that was read from it."""

    value: T | None
    """None where no value could be read."""
    text: str
    problem: str = ""
    """Why the reply was not read, where its text does not show it."""


async def request_verdict(
    chat: Chat,
    messages: Messages,
    step: str,
    read: Callable[[str], T | None],
    form: str,
    sampling: Sampling | None = None,
) -> JudgeReply[T]:
    """Ask a judge, and ask once more if its reply holds no value.

    The second question says what was wrong with the first reply: at temperature 0 the
    same question would get the same reply.

    Args:
        chat: The judge.
        messages: The question.
        step: The step in the ledger's key.
        read: Returns the value in a reply, or None. It does not get incomplete replies.
        form: The value in words, such as "rating", for the second question.
        sampling: Sampling parameters in place of the recipe's.

    Raises:
        CallFailed: The judge gives no reply.
    """
    question = messages
    for attempt in range(_ATTEMPTS):
        reply = await chat(question, step=step, attempt=attempt, sampling=sampling)
        problem = cut_off_reason(reply)
        # A reply that is cut off may hold a draft's verdict within its reasoning.
        value = None if problem else read(reply.text)
        if value is not None:
            return JudgeReply(value, reply.text)
        unread = problem or f"it held no {form} that could be read"
        question = _ask_again(messages, unread, form)
    return JudgeReply(None, reply.text, problem)


def as_data(text: str, tags: str) -> str:
    """Escape tags in a text, so that it cannot close or open any.

    Args:
        text: The text that is judged.
        tags: A regular expression of the tags' names.
    """
    # Look-alikes, so that the judge still sees what the text says.
    return re.sub(rf"<(/?)({tags})>", r"‹\1\2›", text, flags=re.IGNORECASE)


def _ask_again(messages: Messages, problem: str, form: str) -> Messages:
    """Return the question with a note on the last reply, as part of the prompt."""
    *before, last = messages
    note = (
        f"\n\nYour last reply could not be used: {problem}. "
        f"Be brief, and give the {form} in the form that was asked for."
    )
    return [*before, last | {"content": last["content"] + note}]
