"""Rows through several models: live ones share a Ray Data graph, batch ones run here.

A live model answers each call at once. A model in batch mode takes the calls of all
rows as one job of its provider.
"""

import asyncio
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from bezoar_ray.data.row import decode_row, encode_row
from bezoar_ray.data.spool import Spool, spool_rows
from bezoar_ray.llm.batch import BatchClient
from bezoar_ray.llm.chat import Deferred
from bezoar_ray.llm.limits import local_quota_client
from bezoar_ray.pipeline.actor_pool import (
    In,
    ModelStage,
    Out,
    RunContext,
    stream_rows,
)


def run_pipeline(
    inputs: Sequence[tuple[Spool[In], ModelStage[In, Out]]],
    downstream: Sequence[ModelStage[Out, Out]],
    context: RunContext,
    scratch: str,
) -> Iterator[Out]:
    """Yield the rows that the last stage makes, as they are finished.

    Args:
        inputs: The stages that read rows from disk, each with its own rows.
        downstream: The stages through which the rows of all input stages then pass.
        context: The run whose ledger and limits apply.
        scratch: A folder that the whole cluster sees.

    Raises:
        BezoarError: As raised in an actor. Other errors arrive as Ray raises them.
    """
    live_inputs = [(spool, stage) for spool, stage in inputs if _is_live(stage)]
    batch_inputs = [(spool, stage) for spool, stage in inputs if not _is_live(stage)]
    if not batch_inputs:
        # The downstream stages up to the first batch one join the graph.
        joined = list(takewhile(_is_live, downstream))
        rows = stream_rows(live_inputs, joined, context)
        yield from _run_downstream(rows, downstream[len(joined) :], context, scratch)
        return
    rows = chain(
        stream_rows(live_inputs, [], context),
        *(run_in_batches(spool, stage, context) for spool, stage in batch_inputs),
    )
    yield from _run_downstream(rows, downstream, context, scratch)


def run_in_batches(
    rows: Iterable[In], stage: ModelStage[In, Out], context: RunContext
) -> Iterator[Out]:
    """Yield the rows that a stage in batch mode makes, in this process.

    Every round processes each waiting row again. The ledger answers the calls of
    earlier rounds, so that a row advances by one call in a round. Rows wait on disk.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bezoar_ray-") as folder,
        # One event loop for all rounds, to which the client's connections belong.
        asyncio.Runner() as runner,
    ):
        waiting = Path(folder, "waiting.jsonl")
        deferred = Path(folder, "deferred.jsonl")
        with open(waiting, "wb") as file:
            file.writelines(encode_row(row) + b"\n" for row in rows)
        client = runner.run(_open_batches(stage, context))
        try:
            while waiting.stat().st_size:
                with open(waiting, "rb") as file, open(deferred, "wb") as rest:
                    for line in file:
                        row = decode_row(line, stage.input_type)
                        # One by one: a row only adds calls to a queue, so there is
                        # nothing to overlap.
                        outputs = runner.run(_process(row, stage, client))
                        if outputs is None:
                            rest.write(line)
                        else:
                            yield from outputs
                deferred.replace(waiting)
                runner.run(client.send_and_wait())
        finally:
            runner.run(client.close())


async def _open_batches(stage: ModelStage[In, Out], context: RunContext) -> BatchClient:
    batches = BatchClient(stage.section, context.root, stage.role, context.session)
    # Before any limit applies: what unfinished batches cost is spent already.
    await batches.collect_unfinished()
    quota = local_quota_client(context.root, stage.section, stage.role, context.limits)
    batches.set_quota(quota)
    return batches


async def _process(
    row: In, stage: ModelStage[In, Out], client: BatchClient
) -> list[Out] | None:
    """Return all output rows, or None where a call has to wait for the next batch."""
    chat = client.for_row(row.id)
    try:
        return [output async for output in stage.process(row, chat)]
    except Deferred:
        return None


def _run_downstream(
    rows: Iterator[Out],
    stages: Sequence[ModelStage[Out, Out]],
    context: RunContext,
    scratch: str,
) -> Iterator[Out]:
    """Pass rows through stages: live ones in a row as one graph, others one by one."""
    if not stages:
        yield from rows
        return
    first = stages[0]
    if not _is_live(first):
        rows = run_in_batches(rows, first, context)
        yield from _run_downstream(rows, stages[1:], context, scratch)
        return
    live = list(takewhile(_is_live, stages))
    path = f"{scratch}/rows-{len(stages)}.arrow"
    spool = spool_rows(rows, path, first.input_type)
    rows = stream_rows([(spool, first)], live[1:], context)
    yield from _run_downstream(rows, stages[len(live) :], context, scratch)


def _is_live(stage: ModelStage[Any, Any]) -> bool:
    return stage.section.mode == "live"
