"""Orca (arXiv 2306.02707, section 3): FLAN queries, zero-shot, each answered under one of 16 system messages."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest

from bezoar_ray.data.schema import Sample, Seed, row_id
from bezoar_ray.generate.prompts import (
    ORCA_MESSAGES,
    ORCA_MULTIPLE_CHOICE,
    ORCA_SYSTEM,
    explain,
)
from bezoar_ray.generate.task import GenerationTask, answered, call_failed
from bezoar_ray.llm.chat import CallFailed, Chat
from bezoar_ray.recipe import Mixture, Orca


def plan(
    name: str, part: Orca, recipe_seed: int, seeds: Sequence[Seed]
) -> Iterator[GenerationTask]:
    """One work for each drawn query, with its system message: the same for the same recipe seed and rows."""
    places = _by_mixture_and_task(seeds)
    drawn = [
        _draw(name, source, mixture, recipe_seed, places[source])
        for source, mixture in sorted(part.mixtures.items())
    ]
    in_turn = (
        place for place in chain.from_iterable(zip_longest(*drawn)) if place is not None
    )
    return (
        _asked(name, seeds[place], recipe_seed) for place in islice(in_turn, part.rows)
    )


async def run(work: GenerationTask, chat: Chat, part: Orca) -> AsyncIterator[Sample]:
    """The one row of a query."""
    (seed,), number = work.seeds, work.draw["system_message"]
    sample = work.sample(
        f"system_{number}",
        system=ORCA_SYSTEM[number],
        instruction=seed.instruction,
        task_source=seed.task_source,
        task_name=seed.task_name,
    )
    yield await _explained(sample, chat)


async def _explained(sample: Sample, chat: Chat) -> Sample:
    messages = explain(sample.system, sample.instruction)
    try:
        return replace(
            sample, **answered(messages, await chat(messages, step="answer"))
        )
    except CallFailed as error:
        return sample.ended(*call_failed(error))


def usable(seed: Seed) -> bool:
    """Whether a query may be drawn at all: zero-shot, not Dialog, and no BIG-bench task from T0."""
    named = seed.task_name.lower().replace("_", "").replace("-", "")
    big_bench = seed.task_source == "T0" and "bigbench" in named
    return (
        seed.template_type.startswith("zs_")
        and seed.task_source in ORCA_MESSAGES
        and not big_bench
    )


def messages_for(seed: Seed) -> tuple[int, ...]:
    """The system messages that a query's sub-mixture allows; some only where the query has choices."""
    choices = seed.template_type == "zs_opt" or "OPTIONS:" in seed.instruction
    return ORCA_MESSAGES[seed.task_source] + (
        ORCA_MULTIPLE_CHOICE.get(seed.task_source, ()) if choices else ()
    )


def _by_mixture_and_task(seeds: Sequence[Seed]) -> dict[str, dict[str, list[int]]]:
    """The places of the usable queries."""
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, seed in enumerate(seeds):
        if usable(seed):
            places[seed.task_source][seed.task_name].append(place)
    return places


def _draw(
    scheme: str,
    source: str,
    mixture: Mixture,
    recipe_seed: int,
    tasks: dict[str, list[int]],
) -> list[int]:
    """The places of one sub-mixture's queries, in the order in which they are drawn."""
    rng = random.Random(row_id(recipe_seed, scheme, source))
    capped = [
        rng.sample(rows, min(len(rows), mixture.per_task or len(rows)))
        for _, rows in sorted(tasks.items())
    ]
    pool = list(chain.from_iterable(capped))
    rng.shuffle(pool)
    return list(
        islice(_stratified(capped, rng) if mixture.stratified else pool, mixture.rows)
    )


def _stratified(tasks: list[list[int]], rng: random.Random) -> Iterator[int]:
    """Pick a task that has queries left, each as likely as the other; take one of them; and again."""
    left = [list(rows) for rows in tasks if rows]
    while left:
        at = rng.randrange(len(left))
        yield left[at].pop()
        if not left[at]:
            del left[at]


def _asked(scheme: str, seed: Seed, recipe_seed: int) -> GenerationTask:
    rng = random.Random(row_id(recipe_seed, scheme, seed.id))
    draw = {"system_message": rng.choice(messages_for(seed))}
    return GenerationTask(
        row_id(recipe_seed, scheme, seed.id), scheme, recipe_seed, [seed], draw
    )
