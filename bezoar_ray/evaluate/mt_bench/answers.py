"""The candidate's side of MT-Bench: the question's turns one after the other, at the temperature of its category."""

from collections.abc import Callable
from dataclasses import dataclass

from bezoar_ray.llm.chat import CallFailed, Chat, Messages, Sampling
from bezoar_ray.llm.chat_tokens import chat_ids
from bezoar_ray.recipe import MtBench
from bezoar_ray.sources.mt_bench_files import Question

Room = Callable[[Messages], int]
"""How many tokens a conversation leaves for its answer."""


@dataclass(frozen=True)
class Answer:
    """What one model said to one question; fewer turns than the question has where a call failed."""

    question: Question
    model: str
    turns: tuple[str, ...]


async def converse(
    question: Question, model: str, chat: Chat, part: MtBench, room: Room
) -> Answer:
    """Hold the conversation. A turn that cannot be answered ends it."""
    messages: Messages = []
    answers: list[str] = []
    temperature = part.temperatures.get(question.category, 0.0)
    for number, turn in enumerate(question.turns, 1):
        messages.append({"role": "user", "content": turn})
        sampling = Sampling(temperature, 1.0, min(part.max_tokens, room(messages)))
        try:
            reply = await chat(messages, step=f"turn/{number}", sampling=sampling)
        except CallFailed:
            break
        answers.append(reply.text)
        messages = [*messages, {"role": "assistant", "content": reply.text}]
    return Answer(question, model, tuple(answers))


def room_of(tokenizer_folder: str, context: int) -> Room:
    """Exact room by the checkpoint's own tokenizer and template: vLLM refuses a call that could outgrow the context."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    def room(messages: Messages) -> int:
        return max(
            1, context - len(chat_ids(tokenizer, messages, add_generation_prompt=True))
        )

    return room
