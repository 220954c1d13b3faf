"""The way of the rows through several models: live ones in one Ray Data graph, batch by batch through the others."""

import asyncio
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile
from pathlib import Path

from bezoar_ray.data.spool import Spool, spool
from bezoar_ray.llm.batch import Batches
from bezoar_ray.llm.chat import Deferred
from bezoar_ray.llm.limits import own_quota_client
from bezoar_ray.pipeline.actor_pool import Function, ModelStage, RunContext, stream_rows


def run_pipeline(
    heads: list[tuple[Spool, ModelStage]],
    tail: list[ModelStage],
    place: RunContext,
    scratch: str,
) -> Iterator[bytes]:
    """The rows of all items after all passes, as they are done: each head works on its own items, the tail on all.

    `scratch` is a folder that the whole cluster sees. Raises as `stream_rows` does.
    """
    batched = [(items, work) for items, work in heads if not _is_live(work)]
    if not batched:
        live = list(takewhile(_is_live, tail))
        yield from _onward(
            stream_rows(heads, live, place), tail[len(live) :], place, scratch
        )
        return
    live_rows = stream_rows(
        [(items, work) for items, work in heads if _is_live(work)], [], place
    )
    rows = chain(
        live_rows, *(run_in_batches(items, work, place) for items, work in batched)
    )
    yield from _onward(rows, tail, place, scratch)


def run_in_batches(
    items: Iterable[bytes], work: ModelStage, place: RunContext
) -> Iterator[bytes]:
    """The rows that a pass makes of items, in this process: in each round every chain gets one call further."""
    with (
        tempfile.TemporaryDirectory(prefix="bezoar_ray-") as folder,
        asyncio.Runner() as runner,
    ):
        waiting, left = Path(folder, "waiting.jsonl"), Path(folder, "left.jsonl")
        with open(waiting, "wb") as file:
            file.writelines(item + b"\n" for item in items)
        batches = runner.run(_opened(work, place))
        try:
            while waiting.stat().st_size:
                with open(waiting, "rb") as file, open(left, "wb") as rest:
                    for line in file:
                        rows = runner.run(_rows(line[:-1], work.function, batches))
                        if rows is None:
                            rest.write(line)
                        else:
                            yield from rows
                left.replace(waiting)
                runner.run(batches.send())
        finally:
            runner.run(batches.close())


async def _opened(work: ModelStage, place: RunContext) -> Batches:
    batches = Batches(work.part, place.root, work.role, place.session)
    await batches.adopt()  # first, as what it brings is spent already
    batches.limit(own_quota_client(place.root, work.part, work.role, place.limits))
    return batches


async def _rows(
    item: bytes, function: Function, batches: Batches
) -> list[bytes] | None:
    """All rows of an item, or None where a call has to wait for the next batch."""
    try:
        return [row async for row in function(item, batches)]
    except Deferred:
        return None


def _onward(
    rows: Iterator[bytes], tail: list[ModelStage], place: RunContext, scratch: str
) -> Iterator[bytes]:
    if not tail:
        yield from rows
    elif not _is_live(tail[0]):
        yield from _onward(
            run_in_batches(rows, tail[0], place), tail[1:], place, scratch
        )
    else:
        live = list(takewhile(_is_live, tail))
        heads = [(spool(rows, f"{scratch}/rows-{len(tail)}.arrow"), live[0])]
        yield from _onward(
            stream_rows(heads, live[1:], place), tail[len(live) :], place, scratch
        )


def _is_live(work: ModelStage) -> bool:
    return work.part.mode == "live"
