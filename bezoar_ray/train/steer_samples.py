"""Answers of a steered model to prompts with a goal, for a round of SteerLM 2.0.

They are calls of the role `steerer`: the ledger has each one, so that a killed run asks
for no answer twice.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import orjson
import pyarrow as pa

from bezoar_ray import layout
from bezoar_ray.data.attribute_line import add_goal, draw_goal
from bezoar_ray.data.row import StageRow
from bezoar_ray.data.schema import Pair, row_id
from bezoar_ray.data.spool import spool_rows
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.chat import CallFailed, Chat, Reply
from bezoar_ray.llm.model_identity import identity
from bezoar_ray.pipeline.actor_pool import ModelStage, run_context
from bezoar_ray.pipeline.runner import run_pipeline
from bezoar_ray.recipe import Steer
from bezoar_ray.recipe.steering import Goal
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import pairs

ROLE = "steerer"


@dataclass(frozen=True)
class SteerPrompt(StageRow):
    """A prompt, and the goal under which it is answered."""

    id: str
    prompt: list[dict[str, str]]
    goal: Goal


@dataclass(frozen=True)
class SteerGroup(StageRow):
    """The answers to one prompt under one goal."""

    id: str
    prompt: list[dict[str, str]]
    goal: Goal
    answers: list[str] = field(default_factory=list)
    cut_off: int = 0
    """Answers that are left out since they have no end or no text."""
    failed: int = 0
    """Calls without an answer, as for a prompt that fills the context."""


def sample(context: StageContext, steer: Steer, iteration: int) -> str:
    """Sample the answers of a round, unless they are there.

    Args:
        context: the run.
        steer: the recipe's section.
        iteration: from 1; the model is that of the round before.

    Returns:
        The name of the Parquet file with a row for each group, in the order of the
        prompts.

    Raises:
        BezoarError: there is no answer at all, or as raised by the pipeline.
    """
    store = context.store
    folder = layout.part(f"steer-{iteration}")
    file = f"{folder}/answers.parquet"
    record_file = f"{folder}/answers.json"
    merged = layout.part_merged(f"steer-{iteration - 1}")
    # In a bucket, each node has a copy of its own.
    model = f"{store.root}/{merged}" if store.remote else str(store.path(merged))
    section = steer.sampling(model)
    prompts = draw_prompts(
        pairs.read(store, "pairs"), steer, context.recipe.seed, iteration
    )
    record = {
        "model": identity(section),
        "sampling": [steer.temperature, steer.top_p, steer.max_tokens],
        "samples": steer.samples,
        "prompts": row_id(orjson.dumps([asdict(prompt) for prompt in prompts])),
    }
    if store.exists(file) and store.read_json(record_file) == record:
        return file
    store.remove(record_file)
    stage = ModelStage(
        partial(sample_group, iteration=iteration, samples=steer.samples),
        section,
        ROLE,
        SteerPrompt,
        SteerGroup,
    )
    groups = {}
    with store.scratch() as scratch:
        spool = spool_rows(prompts, f"{scratch}/prompts.arrow", SteerPrompt)
        rows = run_pipeline([(spool, stage)], [], run_context(context), scratch)
        for group in rows:
            groups[group.id] = group
            note = f"round {iteration}: prompts with {steer.samples} answers each"
            context.progress.update(len(groups), len(prompts), note)
    # As they come, their order would depend on how fast each one is.
    in_order = [groups[prompt.id] for prompt in prompts]
    _check_answers(in_order, steer)
    store.replace_table(file, _table(in_order))
    # The record comes last, as the file counts only with it.
    store.replace_json(record_file, record)
    return file


def draw_prompts(
    rows: Iterable[Pair], steer: Steer, seed: int, iteration: int
) -> list[SteerPrompt]:
    """Draw the prompts of a round, each with its goal.

    Both draws depend on the seed, the iteration and the row alone. Of pairs with the
    same prompt, the first one counts.
    """
    purpose = f"steer/{iteration}"
    first_pairs: dict[bytes, Pair] = {}
    for row in rows:
        first_pairs.setdefault(orjson.dumps(row.prompt), row)
    drawn = sorted(
        first_pairs.values(), key=lambda row: row_id(seed, purpose, "prompt", row.id)
    )
    return [
        SteerPrompt(row.id, row.prompt, draw_goal(steer.goals, seed, purpose, row.id))
        for row in drawn[: steer.prompts]
    ]


async def sample_group(
    row: SteerPrompt, chat: Chat, *, iteration: int, samples: int
) -> AsyncIterator[SteerGroup]:
    """Yield the group of a prompt: its answers under its goal."""
    messages = add_goal(row.prompt, row.goal)

    async def answer(number: int) -> Reply | None:
        try:
            return await chat(messages, step=f"steer/{iteration}", sample=number)
        except CallFailed:
            return None

    group = SteerGroup(row.id, row.prompt, row.goal)
    for reply in await to_the_end(answer(number) for number in range(samples)):
        if reply is None:
            group = replace(group, failed=group.failed + 1)
        # The model did not choose where such an answer ends. It would
        # learn to end there.
        elif reply.is_cut_off or not reply.text.strip():
            group = replace(group, cut_off=group.cut_off + 1)
        else:
            group = replace(group, answers=[*group.answers, reply.text])
    yield group


def read_groups(store: Store, file: str, begin: float, end: float) -> list[SteerGroup]:
    """Read a share of the groups in a file, in their order.

    Args:
        store: the run directory.
        file: as `sample` returns it.
        begin: where the share begins, from 0 to 1.
        end: where it ends.
    """
    table = store.read_table(file, _schema())
    first = round(begin * table.num_rows)
    last = round(end * table.num_rows)
    return list(_groups(table.slice(first, last - first)))


def _groups(table: pa.Table) -> Iterator[SteerGroup]:
    for row in table.to_pylist():
        yield SteerGroup(**row | {"goal": orjson.loads(row["goal"])})


def _check_answers(groups: list[SteerGroup], steer: Steer) -> None:
    if any(group.answers for group in groups):
        return
    cut_off = sum(group.cut_off for group in groups)
    failed = sum(group.failed for group in groups)
    raise BezoarError(
        f"align.steer: none of the answers to {len(groups)} prompts can be learned "
        f"from: {cut_off} are cut off or empty, {failed} failed. Raise "
        f"align.steer.max_tokens (it is {steer.max_tokens}), or give "
        "align.steer.sampler.engine a longer max_model_len"
    )


def _schema() -> pa.Schema:
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("prompt", pa.list_(message)),
            # As JSON: goals name different attributes.
            ("goal", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("cut_off", pa.int64()),
            ("failed", pa.int64()),
        ]
    )


def _table(groups: list[SteerGroup]) -> pa.Table:
    rows = []
    for group in groups:
        goal = orjson.dumps(group.goal).decode()
        rows.append(asdict(group) | {"goal": goal})
    return pa.Table.from_pylist(rows, _schema())
