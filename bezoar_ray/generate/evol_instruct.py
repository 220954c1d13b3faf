"""Evol-Instruct (arXiv 2304.12244, section 3.1): rewrite a seed over several epochs.

Each rewritten instruction is answered. One that breaks an elimination rule becomes a
rejected row, and the next epoch rewrites its parent again.
"""

import random
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

from bezoar_ray.data.schema import Sample, Seed
from bezoar_ray.generate.elimination import answer_fault, instruction_fault
from bezoar_ray.generate.prompts import (
    comparison_prompt,
    evolution_prompt,
    evolved_answer_prompt,
)
from bezoar_ray.generate.task import (
    GenerationTask,
    fail_call,
    fill_answer,
    one_task_per_seed,
)
from bezoar_ray.llm.chat import CallFailed, Chat, Reply, Sampling
from bezoar_ray.recipe import EvolInstruct

# The reply is "Equal" or "Not equal", so there is nothing to sample.
_COMPARISON_SAMPLING = Sampling(temperature=0.0, max_tokens=16)


def plan(
    name: str,
    section: EvolInstruct,
    recipe_seed: int,
    seeds: Sequence[Seed],
) -> Iterator[GenerationTask]:
    """Yield one task for each drawn seed, or for all where the recipe asks for more."""
    return one_task_per_seed(name, recipe_seed, seeds, section.seeds)


async def run(
    task: GenerationTask,
    chat: Chat,
    section: EvolInstruct,
) -> AsyncIterator[Sample]:
    """Yield one row for each epoch.

    The operations are drawn from the task's id, so a rerun draws the same ones.
    """
    rng = random.Random(task.id)
    # Sorted, so that the order of the recipe's lines does not change what is drawn.
    operations, weights = zip(*sorted(section.operations.items()), strict=True)
    parent = task.seeds[0].task
    for epoch in range(1, section.epochs + 1):
        # The paper draws one operation per epoch, uniformly by default.
        (operation,) = rng.choices(operations, weights)
        sample = task.sample(operation, round=epoch)
        sample = await _evolve(sample, parent, chat)
        # After a failed evolution the parent goes unchanged into the next epoch.
        if sample.status == "generated":
            parent = sample.instruction
        yield sample


async def _evolve(sample: Sample, parent: str, chat: Chat) -> Sample:
    """Rewrite the parent, check the result and answer it; a fault ends the row."""
    try:
        prompt = evolution_prompt(sample.operation, parent)
        reply = await chat(prompt, step=f"evolve/{sample.round}")
        sample = replace(sample, instruction=reply.text.strip())
        fault = await _evolution_fault(sample, reply, parent, chat)
        if fault:
            return sample.ended("rejected", fault)
        messages = evolved_answer_prompt(sample.instruction)
        reply = await chat(messages, step=f"answer/{sample.round}")
    except CallFailed as error:
        return fail_call(sample, error)
    sample = fill_answer(sample, messages, reply)
    fault = answer_fault(sample.response)
    if fault:
        return sample.ended("rejected", fault)
    return sample


async def _evolution_fault(
    sample: Sample,
    reply: Reply,
    parent: str,
    chat: Chat,
) -> str | None:
    """Return why a rewritten instruction is rejected, or None."""
    if reply.is_cut_off:
        return "truncated"
    fault = instruction_fault(sample.instruction)
    if fault:
        return fault
    # An unchanged text adds nothing: no call is paid to compare it.
    if sample.instruction == parent.strip():
        return "adds_nothing"
    if await _asks_the_same(parent, sample, chat):
        return "adds_nothing"
    return None


async def _asks_the_same(parent: str, sample: Sample, chat: Chat) -> bool:
    """Apply elimination rule 1: the model compares an instruction with its parent."""
    reply = await chat(
        comparison_prompt(parent, sample.instruction),
        step=f"adds_nothing/{sample.round}",
        sampling=_COMPARISON_SAMPLING,
    )
    return says_equal(reply.text)


def says_equal(reply: str) -> bool:
    """Whether a comparison calls two instructions equal, in a word or a sentence."""
    text = reply.lower()
    # Models also write "They are not equal" or "The second isn't equal to the first".
    denials = r"\bnot|n['’]t|\bneither|\bnor|\bhardly|\bfar from|\bwould be"
    is_denied = re.search(rf"({denials})\s+(\w+\s+){{0,2}}equal|unequal", text)
    says_the_word = re.search(r"\bequal\b", text)
    return bool(says_the_word) and not is_denied
