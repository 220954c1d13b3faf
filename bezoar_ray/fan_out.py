"""One Ray Data pass of async actors that talk to a model: how generate and filter spread their rows."""

import asyncio
import math
import pickle
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bezoar_ray.errors import BezoarError
from bezoar_ray.logs import redirect
from bezoar_ray.recipe import ModelPart

T = TypeVar("T")
Function = Callable[[bytes, Any], AsyncIterator[bytes]]  # an item and the actor's Talker, to rows

_BLOCK = 4  # items in one Ray task: small, so that a batch hardly waits for its slowest chain


@dataclass(frozen=True)
class Line:
    """Who is talked to, and on whose account."""

    part: ModelPart
    root: str  # the run directory, whose ledger keeps the calls
    role: str
    session: str

    @property
    def log(self) -> Path:
        """Where the actors write."""
        return Path(self.root) / "logs" / f"{self.role}.log"


def fan_out(items: list[bytes], function: Function, line: Line) -> Iterator[bytes]:
    """The rows that an async function makes of each item, in the order in which they are done.

    `function` runs in `line.part.actors` actors, on `max_in_flight` items at a time in each; an actor opens its model
    once. Items and rows are JSON, so that rows of any shape share one Arrow schema.

    Raises:
        BezoarError: as raised in an actor; other errors come as Ray raises them.
    """
    if not items:
        return
    import ray

    _quieten()
    part, tasks = line.part, max(1, line.part.max_in_flight // _BLOCK)
    rows = ray.data.from_items(
        [{"item": item} for item in items], override_num_blocks=math.ceil(len(items) / _BLOCK)
    ).map_batches(
        _Actor,
        fn_constructor_args=(function, line),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(
            size=part.actors, max_tasks_in_flight_per_actor=2 * tasks, max_concurrent_calls_per_actor=tasks
        ),
        num_cpus=part.num_cpus,
        num_gpus=part.num_gpus,
    )
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row, error in zip(batch["row"].to_pylist(), batch["error"].to_pylist(), strict=True):
            if error:
                raise pickle.loads(error)
            yield row


class _Actor:
    """An actor with one open model; the work itself is the function's."""

    def __init__(self, function: Function, line: Line):
        redirect(line.log)
        self._function, self._line, self._talker = function, line, None

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, list[bytes]]]:
        if self._talker is None:  # here and not in __init__: an engine wants the running loop
            from bezoar_ray.llm.client import open_talker

            self._talker = open_talker(self._line.part, self._line.root, self._line.role, self._line.session)
        streams = [self._function(item, self._talker) for item in batch["item"]]
        try:
            async for row in interleaved(streams):
                yield {"row": [row], "error": [b""]}
        except Exception as error:  # sent as ours: Ray would wrap it and add advice of its own to its message
            yield {"row": [b""], "error": [pickle.dumps(self._ours(error))]}

    def _ours(self, error: Exception) -> BezoarError:
        if isinstance(error, BezoarError):
            return error
        traceback.print_exception(error)
        return BezoarError(f"{self._line.role}: {type(error).__name__}: {error}. More in {self._line.log}")


async def interleaved(streams: Iterable[AsyncIterator[T]]) -> AsyncIterator[T]:
    """What all the streams yield, as it comes. The first error ends them all."""
    end = object()
    waiting = {asyncio.ensure_future(anext(stream, end)): stream for stream in streams}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                stream, item = waiting.pop(task), task.result()
                if item is not end:
                    waiting[asyncio.ensure_future(anext(stream, end))] = stream
                    yield item
    finally:
        for task in waiting:
            task.cancel()


def _quieten() -> None:
    """Our own line says how far the pass is; Ray Data's bars and plans stay away."""
    import logging

    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends a pass is raised
