"""The judge's side of MT-Bench: a grade for each turn, guided by a reference where there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bezoar_ray.evaluate.mt_bench.answers import Answer
from bezoar_ray.evaluate.mt_bench.judge_prompts import OWN, JudgePrompts, read_grade
from bezoar_ray.llm.chat import CallFailed, Chat, Messages
from bezoar_ray.llm.verdicts import hear

T = TypeVar("T")


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


async def judge_turn(
    answer: Answer, turn: int, judge: str, chat: Chat, prompts: JudgePrompts = OWN
) -> Judgment:
    """Grade one turn, from 1; it is judged with the whole conversation before it."""
    question = answer.question
    if len(answer.turns) < turn:
        return Judgment(
            question.id,
            question.category,
            answer.model,
            judge,
            turn,
            None,
            "no answer to judge",
        )
    references = question.references and question.references[:turn]
    messages = prompts.grade(question.turns[:turn], answer.turns[:turn], references)
    score, text = await asked(
        messages, f"grade/{answer.model}/{turn}", chat, read_grade, "rating"
    )
    prompt, guided = messages[-1]["content"], references is not None
    return Judgment(
        question.id,
        question.category,
        answer.model,
        judge,
        turn,
        score,
        text,
        prompt,
        guided,
    )


async def asked(
    messages: Messages,
    step: str,
    chat: Chat,
    read: Callable[[str], T | None],
    form: str,
) -> tuple[T | None, str]:
    """What a judge's reply holds, or None where it cannot be read, and the reply, with what was wrong with it."""
    try:
        heard = await hear(chat, messages, step, read, form)
    except CallFailed as error:
        return None, f"no reply: {error}"
    return (
        heard.value,
        f"{heard.text}\n\n(not read: {heard.why})" if heard.why else heard.text,
    )
