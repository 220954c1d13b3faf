"""Orca (arXiv 2306.02707, section 3): answer zero-shot FLAN queries with explanations.

Each query is answered under one of 16 system messages.
"""

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import chain, islice, zip_longest

from bezoar_ray.data.schema import Sample, Seed, row_id
from bezoar_ray.generate.prompts import (
    ORCA_MESSAGES,
    ORCA_MULTIPLE_CHOICE,
    ORCA_SYSTEM,
    explanation_prompt,
)
from bezoar_ray.generate.task import GenerationTask, fail_call, fill_answer
from bezoar_ray.llm.chat import CallFailed, Chat
from bezoar_ray.recipe import Mixture, Orca

QueriesByTask = dict[str, list[int]]
"""The indices of queries by their FLAN task."""


def plan(
    name: str,
    section: Orca,
    recipe_seed: int,
    seeds: Sequence[Seed],
) -> Iterator[GenerationTask]:
    """Yield one task for each drawn query, with its system message.

    The sub-mixtures take turns, until `rows` queries are drawn or none is left. The
    same recipe seed and seed rows give the same tasks.
    """
    queries = _usable_queries(seeds)
    drawn_by_mixture = []
    for mixture_name, mixture in sorted(section.mixtures.items()):
        # Each sub-mixture draws for itself, so another one's
        # settings do not matter to it.
        rng = random.Random(row_id(recipe_seed, name, mixture_name))
        drawn_by_mixture.append(_draw_queries(mixture, queries[mixture_name], rng))
    for index in islice(_in_turn(drawn_by_mixture), section.rows):
        seed = seeds[index]
        task_id = row_id(recipe_seed, name, seed.id)
        # Seeded by the query alone: a recipe with more rows changes no message.
        system_message = random.Random(task_id).choice(allowed_system_messages(seed))
        draw = {"system_message": system_message}
        yield GenerationTask(task_id, name, recipe_seed, [seed], draw)


async def run(task: GenerationTask, chat: Chat, section: Orca) -> AsyncIterator[Sample]:
    """Yield the one row of a query."""
    (seed,) = task.seeds
    number = task.draw["system_message"]
    sample = task.sample(
        f"system_{number}",
        system=ORCA_SYSTEM[number],
        instruction=seed.instruction,
        task_source=seed.task_source,
        task_name=seed.task_name,
    )
    messages = explanation_prompt(sample.system, sample.instruction)
    try:
        reply = await chat(messages, step="answer")
    except CallFailed as error:
        yield fail_call(sample, error)
        return
    yield fill_answer(sample, messages, reply)


def is_usable(seed: Seed) -> bool:
    """Whether a query may be drawn: zero-shot, and neither Dialog nor BIG-bench."""
    if not seed.template_type.startswith("zs_"):
        return False
    if seed.task_source not in ORCA_MESSAGES:
        return False
    task_name = seed.task_name.lower().replace("_", "").replace("-", "")
    return not (seed.task_source == "T0" and "bigbench" in task_name)


def allowed_system_messages(seed: Seed) -> tuple[int, ...]:
    """Return the numbers of the system messages that suit a query.

    They depend on its sub-mixture. Some are allowed only where the query has choices.
    """
    messages = ORCA_MESSAGES[seed.task_source]
    # FLAN's templates write the choices of a query under OPTIONS.
    has_choices = seed.template_type == "zs_opt" or "OPTIONS:" in seed.instruction
    if has_choices:
        messages += ORCA_MULTIPLE_CHOICE.get(seed.task_source, ())
    return messages


def _usable_queries(seeds: Sequence[Seed]) -> dict[str, QueriesByTask]:
    """Return the usable queries of each sub-mixture."""
    indices: dict[str, QueriesByTask] = defaultdict(lambda: defaultdict(list))
    for index, seed in enumerate(seeds):
        if is_usable(seed):
            indices[seed.task_source][seed.task_name].append(index)
    return indices


def _draw_queries(
    mixture: Mixture,
    tasks: QueriesByTask,
    rng: random.Random,
) -> list[int]:
    """Return the indices of one sub-mixture's queries in the order of drawing."""
    capped = []
    for _, indices in sorted(tasks.items()):
        # The paper takes at most 300 queries per task of NIV2, a million of Flan 2021.
        count = min(len(indices), mixture.per_task or len(indices))
        capped.append(rng.sample(indices, count))
    pool = list(chain.from_iterable(capped))
    # Also before a stratified draw: the shuffle advances `rng`, and what a recipe seed
    # draws must stay the same.
    rng.shuffle(pool)
    queries: Iterable[int] = pool
    if mixture.stratified:
        queries = _draw_stratified(capped, rng)
    return list(islice(queries, mixture.rows))


def _draw_stratified(tasks: list[list[int]], rng: random.Random) -> Iterator[int]:
    """Pick a task uniformly, take one of its queries, and repeat until none is left."""
    remaining = [list(indices) for indices in tasks if indices]
    while remaining:
        picked = rng.randrange(len(remaining))
        # `rng.sample` has put each task's queries in random order, so any end will do.
        yield remaining[picked].pop()
        if not remaining[picked]:
            del remaining[picked]


def _in_turn(lists: list[list[int]]) -> Iterator[int]:
    """Yield the first items of all lists, then the second ones, and so on."""
    for items in zip_longest(*lists):
        yield from (item for item in items if item is not None)
