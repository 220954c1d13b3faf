"""The candidate's side of MT-Bench: two turns, at the temperature of the question's category."""

from collections.abc import Callable
from dataclasses import dataclass

from bezoar_ray.llm.chat import CallFailed, Chat, Messages, Sampling
from bezoar_ray.sources.mt_bench import Question

_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # FastChat's; greedy elsewhere

Room = Callable[[Messages], int]
"""How many tokens a conversation leaves for its answer."""


@dataclass(frozen=True)
class Answer:
    """What one checkpoint said to one question; fewer turns than the question has where a call failed."""

    question: Question
    model: str
    turns: tuple[str, ...]


def temperature(category: str) -> float:
    """The sampling temperature of a category's answers."""
    return _TEMPERATURES.get(category, 0.0)


async def converse(question: Question, model: str, chat: Chat, max_tokens: int, room: Room) -> Answer:
    """Hold the conversation. A turn that cannot be answered ends it."""
    messages: Messages = []
    answers: list[str] = []
    for number, turn in enumerate(question.turns, 1):
        messages.append({"role": "user", "content": turn})
        sampling = Sampling(temperature(question.category), 1.0, min(max_tokens, room(messages)))
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
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return max(1, context - len(ids))

    return room
