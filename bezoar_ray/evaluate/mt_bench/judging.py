"""The judge's side of MT-Bench: one grade per turn, guided by a reference where there is one."""

from dataclasses import dataclass

from bezoar_ray.evaluate.mt_bench.loop import Answer
from bezoar_ray.evaluate.mt_bench.prompts import grade, read_grade
from bezoar_ray.llm.chat import CallFailed, Chat

_ATTEMPTS = 2  # an unreadable reply is asked once more


@dataclass(frozen=True)
class Judgment:
    """One grade from 1 to 10 of one turn; `score` is None where none could be read, and such turns enter no mean."""

    question_id: int | str
    category: str
    model: str
    turn: int
    score: float | None
    text: str
    user_prompt: str = ""
    with_reference: bool = False


async def judge_turn(answer: Answer, turn: int, chat: Chat) -> Judgment:
    """Grade one turn (1 or 2); the second is judged with the whole conversation."""
    question = answer.question
    if len(answer.turns) < turn:
        return Judgment(question.id, question.category, answer.model, turn, None, "no answer to judge")
    references = list(question.references[:turn]) if question.references else None
    messages = grade(list(question.turns[:turn]), list(answer.turns[:turn]), references)
    score, text = await _ask(messages, turn, chat)
    prompt = messages[-1]["content"]
    return Judgment(question.id, question.category, answer.model, turn, score, text, prompt, references is not None)


async def _ask(messages: list[dict[str, str]], turn: int, chat: Chat) -> tuple[float | None, str]:
    text = ""
    for attempt in range(_ATTEMPTS):
        try:
            text = (await chat(messages, step=f"grade/{turn}", attempt=attempt)).text
        except CallFailed as error:
            return None, f"no reply: {error}"
        score = read_grade(text)
        if score is not None:
            return score, text
    return None, text
