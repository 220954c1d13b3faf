"""Evol-Instruct (arXiv 2304.12244, section 3.1): each seed is rewritten, epoch after epoch, and answered anew.

An evolution that fails one of the four elimination rules is a rejected row; its parent goes on to the next epoch.
"""

import random
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

from bezoar_ray.data.schema import Sample, Seed
from bezoar_ray.generate.elimination import spoilt_answer, spoilt_instruction
from bezoar_ray.generate.prompts import adds_nothing, evolve, evolved_answer
from bezoar_ray.generate.task import GenerationTask, answered, call_failed, one_for_each
from bezoar_ray.llm.chat import CallFailed, Chat, Sampling
from bezoar_ray.recipe import EvolInstruct

_COMPARING = Sampling(
    temperature=0.0, max_tokens=16
)  # "Equal" or "Not equal": nothing to sample


def plan(
    name: str, part: EvolInstruct, recipe_seed: int, seeds: Sequence[Seed]
) -> Iterator[GenerationTask]:
    """One work for each drawn seed; all of the seeds where there are fewer than the recipe asks for."""
    return one_for_each(name, recipe_seed, seeds, part.seeds)


async def run(
    work: GenerationTask, chat: Chat, part: EvolInstruct
) -> AsyncIterator[Sample]:
    """One row for each epoch. A rerun draws the same operations: they come from the work's id."""
    rng = random.Random(work.id)
    names, weights = zip(*sorted(part.operations.items()), strict=True)
    parent = work.seeds[0].task
    for epoch in range(1, part.epochs + 1):
        sample = await _evolved(
            work.sample(rng.choices(names, weights)[0], round=epoch), parent, chat
        )
        if sample.status == "generated":
            parent = sample.instruction
        yield sample


async def _evolved(sample: Sample, parent: str, chat: Chat) -> Sample:
    """The sample, filled as far as it gets."""
    try:
        reply = await chat(
            evolve(sample.operation, parent), step=f"evolve/{sample.round}"
        )
        sample = replace(sample, instruction=reply.text.strip())
        fault = (
            "truncated" if reply.is_cut_off else spoilt_instruction(sample.instruction)
        )
        if not fault and sample.instruction == parent.strip():
            fault = "adds_nothing"
        if not fault and await _same(parent, sample, chat):
            fault = "adds_nothing"
        if fault:
            return sample.ended("rejected", fault)
        messages = evolved_answer(sample.instruction)
        reply = await chat(messages, step=f"answer/{sample.round}")
    except CallFailed as error:
        return sample.ended(*call_failed(error))
    sample = replace(sample, **answered(messages, reply))
    fault = spoilt_answer(sample.response)
    return sample.ended("rejected", fault) if fault else sample


async def _same(parent: str, sample: Sample, chat: Chat) -> bool:
    """Elimination rule 1: the model finds that the evolution asks for nothing new."""
    step = f"adds_nothing/{sample.round}"
    reply = await chat(
        adds_nothing(parent, sample.instruction), step=step, sampling=_COMPARING
    )
    return finds_equal(reply.text)


def finds_equal(reply: str) -> bool:
    """Whether a comparison finds two instructions equal: in the word that was asked for, or in a sentence."""
    said = reply.lower()
    denials = r"\bnot|n['’]t|\bneither|\bnor|\bhardly|\bfar from|\bwould be"
    denied = re.search(rf"({denials})\s+(\w+\s+){{0,2}}equal|unequal", said)
    return bool(re.search(r"\bequal\b", said)) and not denied
