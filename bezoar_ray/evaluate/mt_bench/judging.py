"""The judge's side of MT-Bench: one grade for each turn, with a reference if there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bezoar_ray.evaluate.mt_bench.answers import Answer
from bezoar_ray.evaluate.mt_bench.judge_prompts import OWN, JudgePrompts, read_grade
from bezoar_ray.llm.chat import CallFailed, Chat, Messages
from bezoar_ray.llm.verdicts import request_verdict

T = TypeVar("T")


@dataclass(frozen=True)
class Judgment:
    """One judge's grade of one turn."""

    question_id: int | str
    category: str
    model: str
    judge: str
    turn: int
    """From 1."""
    score: float | None
    """From 1 to 10. None if it could not be read; such a turn enters no mean."""
    text: str
    """The judge's reply."""
    user_prompt: str = ""
    with_reference: bool = False


async def judge_turn(
    answer: Answer, turn: int, judge: str, chat: Chat, prompts: JudgePrompts = OWN
) -> Judgment:
    """Grade one turn, from 1. The judge sees the whole conversation up to it."""
    question = answer.question
    if len(answer.turns) < turn:
        return Judgment(
            question_id=question.id,
            category=question.category,
            model=answer.model,
            judge=judge,
            turn=turn,
            score=None,
            text="no answer to judge",
        )
    references = question.references and question.references[:turn]
    questions = question.turns[:turn]
    answers = answer.turns[:turn]
    messages = prompts.grade(questions, answers, references)
    step = f"grade/{answer.model}/{turn}"
    score, text = await ask_judge(messages, step, chat, read_grade, "rating")
    return Judgment(
        question_id=question.id,
        category=question.category,
        model=answer.model,
        judge=judge,
        turn=turn,
        score=score,
        text=text,
        user_prompt=messages[-1]["content"],
        with_reference=references is not None,
    )


async def ask_judge(
    messages: Messages,
    step: str,
    chat: Chat,
    read: Callable[[str], T | None],
    form: str,
) -> tuple[T | None, str]:
    """Ask a judge, and read its reply.

    Args:
        messages: the prompt.
        step: the step of the ledger's key.
        chat: the judge.
        read: returns the grade or verdict in a reply, or None.
        form: what the reply must contain, in words.

    Returns:
        The grade or verdict, or None if it could not be read, and the reply's text. The
        text ends with the reason if the reply was not read.
    """
    try:
        heard = await request_verdict(chat, messages, step, read, form)
    except CallFailed as error:
        return None, f"no reply: {error}"
    text = heard.text
    if heard.problem:
        text = f"{text}\n\n(not read: {heard.problem})"
    return heard.value, text
