"""The candidate's side of MT-Bench: it answers the turns of a question one by one."""

from collections.abc import Callable
from dataclasses import dataclass

from bezoar_ray.llm.chat import CallFailed, Chat, Messages, Sampling
from bezoar_ray.llm.chat_tokens import chat_ids
from bezoar_ray.recipe import MtBench
from bezoar_ray.sources.mt_bench_files import Question

RemainingContext = Callable[[Messages], int]
"""Returns how many tokens a conversation leaves for the next answer."""


@dataclass(frozen=True)
class Answer:
    """One model's answers to one question."""

    question: Question
    model: str
    turns: tuple[str, ...]
    """Fewer than the question's turns if a call failed."""


async def converse(
    question: Question,
    model: str,
    chat: Chat,
    section: MtBench,
    remaining_context: RemainingContext,
    system: str = "",
) -> Answer:
    """Answer all turns of a question. A turn that fails ends the conversation.

    Each category has a sampling temperature of its own, as in FastChat.

    Args:
        question: what is asked.
        model: name of the candidate.
        chat: of the candidate.
        section: the recipe's section.
        remaining_context: counts the tokens that are left for an answer.
        system: system message of the conversation. None where empty.
    """
    messages: Messages = []
    if system:
        messages.append({"role": "system", "content": system})
    answers: list[str] = []
    temperature = section.temperatures.get(question.category, 0.0)
    for number, turn in enumerate(question.turns, 1):
        messages.append({"role": "user", "content": turn})
        max_tokens = min(section.max_tokens, remaining_context(messages))
        sampling = Sampling(temperature, 1.0, max_tokens)
        try:
            reply = await chat(messages, step=f"turn/{number}", sampling=sampling)
        except CallFailed:
            break
        answers.append(reply.text)
        messages = [*messages, {"role": "assistant", "content": reply.text}]
    return Answer(question, model, tuple(answers))


def remaining_context_of(tokenizer_folder: str, context: int) -> RemainingContext:
    """Count the remaining context exactly, with the checkpoint's own tokenizer.

    vLLM refuses a call whose prompt and `max_tokens` together exceed the context.

    Args:
        tokenizer_folder: folder of the tokenizer and its chat template.
        context: longest prompt and answer together, in tokens.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    def remaining_context(messages: Messages) -> int:
        prompt = chat_ids(tokenizer, messages, add_generation_prompt=True)
        return max(1, context - len(prompt))

    return remaining_context
