"""The judge's side of MT-Bench: a grade for each turn, guided by a reference where there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bezoar_ray.evaluate.mt_bench.loop import Answer
from bezoar_ray.evaluate.mt_bench.prompts import again, grade, read_grade
from bezoar_ray.llm.chat import CallFailed, Chat, Messages, unread

T = TypeVar("T")

_ATTEMPTS = 2  # after an unreadable reply the judge is asked once more


@dataclass(frozen=True)
class Judgment:
    """One grade from 1 to 10 of one turn; `score` is None where none could be read, and such turns enter no mean."""

    question_id: int | str
    category: str
    model: str
    judge: str
    turn: int
    score: float | None
    text: str
    user_prompt: str = ""
    with_reference: bool = False


async def judge_turn(answer: Answer, turn: int, judge: str, chat: Chat) -> Judgment:
    """Grade one turn, from 1; it is judged with the whole conversation before it."""
    question = answer.question
    if len(answer.turns) < turn:
        return Judgment(question.id, question.category, answer.model, judge, turn, None, "no answer to judge")
    references = question.references and question.references[:turn]
    messages = grade(question.turns[:turn], answer.turns[:turn], references)
    score, text = await asked(messages, f"grade/{answer.model}/{turn}", chat, read_grade)
    prompt, guided = messages[-1]["content"], references is not None
    return Judgment(question.id, question.category, answer.model, judge, turn, score, text, prompt, guided)


async def asked(messages: Messages, step: str, chat: Chat, read: Callable[[str], T | None]) -> tuple[T | None, str]:
    """What a judge's reply holds, or None where it cannot be read, and the reply, with what was wrong with it."""
    asked_before, text = messages, ""
    for attempt in range(_ATTEMPTS):
        try:
            reply = await chat(messages, step=step, attempt=attempt)
        except CallFailed as error:
            return None, f"no reply: {error}"
        why = unread(reply)
        found = None if why else read(reply.text)
        if found is not None:
            return found, reply.text
        text = f"{reply.text}\n\n(not read: {why})" if why else reply.text
        messages = again(asked_before, why or "it held no verdict in the form that was asked for")
    return None, text
