"""A Ray Data graph of async actors that talk to models: how generate and filter spread their rows.

Between the actors travel cells: some items or rows, each a line of JSON, in one bytes value. A task works on one cell,
and tasks overlap, so that a slow item holds up its own cell alone. A cell in gives a cell out, its rows in the order of
the items: where an actor dies, Ray Data starts another, which does its cells again, and finds in the ledger what was
answered before. The items of the first cells lie on disk; Ray is given their numbers.
"""

import logging
import os
import pickle
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bezoar_ray.data.spool import FEW, Spool
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.chat import ModelDied
from bezoar_ray.llm.client import open_client
from bezoar_ray.llm.ledger import ROLES, SESSION
from bezoar_ray.llm.ledger_index import read_index
from bezoar_ray.llm.limits import (
    Limit,
    RunQuotaServer,
    limits,
    quota_client,
    quota_limits,
)
from bezoar_ray.recipe import ModelSection
from bezoar_ray.runtime.capacity import ResourceRequest, check_capacity
from bezoar_ray.runtime.logs import event, keep_events, redirect
from bezoar_ray.runtime.metrics import hold_gpus
from bezoar_ray.runtime.session import beside_driver, quieten, unseen
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store

if TYPE_CHECKING:
    import ray
    from ray.actor import ActorHandle

    from bezoar_ray.llm.client import ModelClient
    from bezoar_ray.llm.ledger_index import Index

    Meter = ActorHandle[RunQuotaServer]

Function = Callable[
    [bytes, Any], AsyncIterator[bytes]
]  # an item and the actor's ModelClient, to rows

_UNDER_WAY = 4  # cells that an actor works on at a time, at least, so that some fill the slots while others end
_DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class ModelStage:
    """One model, and what is done with it to each item."""

    function: Function
    part: ModelSection
    role: str


@dataclass(frozen=True)
class RunContext:
    """On whose account the models are talked to."""

    root: str  # the run directory, whose ledger keeps the calls
    session: str
    limits: tuple[Limit, ...] = ()
    held: bool = False  # by a command, whose name stands in it for all who see it

    def log(self, name: str) -> Path:
        """The file of a log on this node."""
        return Store(self.root).log(name)


def run_context(context: StageContext) -> RunContext:
    """The run that a stage belongs to."""
    held = context.store.exists(SESSION)
    return RunContext(
        str(context.store.root), context.session, limits(context.recipe), held
    )


def stream_rows(
    heads: list[tuple[Spool, ModelStage]], tail: list[ModelStage], place: RunContext
) -> Iterator[bytes]:
    """The rows of all items, as they are done: each head works on its own items, then the passes of the tail on all.

    Every pass has `part.actors` to `part.max_actors` actors, which open their model once and have at most
    `part.max_in_flight` calls under way. Passes overlap; what waits between them is bounded by Ray's object store.

    Raises:
        BezoarError: as raised in an actor; other errors come as Ray raises them.
    """
    heads = [(items, work) for items, work in heads if items.batches]
    if not heads:
        return
    import ray

    passes = [work for _, work in heads] + tail
    check_capacity(
        [
            ResourceRequest.of(work.part, work.part.actors, work.part.model)
            for work in passes
        ]
    )
    quieten(ray.data.DataContext.get_current())
    cells = [items.cells(work.part.max_in_flight) for items, work in heads]
    sizes = [FEW * len(of_head[0]) for of_head in cells]
    meter, branches = _meter(passes, place), []
    indexes = {
        role: ray.put(read_index(place.root, role, place.session))
        for role in {work.role for work in passes}
    }
    for n, ((items, work), of_head) in enumerate(zip(heads, cells, strict=True)):
        places = [{"start": cell.start, "stop": cell.stop} for cell in of_head]
        numbers = ray.data.from_items(places, override_num_blocks=len(places))
        branches.append(
            _mapped(
                numbers,
                work,
                sizes[n],
                (work, place, (meter, str(n)), indexes[work.role], items),
            )
        )
    rows = branches[0].union(*branches[1:]) if branches[1:] else branches[0]
    for n, work in enumerate(tail, len(heads)):
        rows = _mapped(
            rows, work, max(sizes), (work, place, (meter, str(n)), indexes[work.role])
        )
    tables: Iterable[Any] = rows.iter_batches(batch_size=None, batch_format="pyarrow")
    done = (
        cell
        for batch in tables
        for cell in zip(
            batch["cell"].to_pylist(), batch["error"].to_pylist(), strict=True
        )
    )
    missing = sum(map(len, cells))
    for cell, error in done:
        if error:
            _drain(
                done,
                sum(
                    2 * _tasks(work.part, min(sizes)) * work.part.most_actors
                    for work in passes
                ),
            )
            raise pickle.loads(error)
        missing -= 1
        yield from lines(cell)
    if missing:  # nothing of a run may be called whole that is not
        raise BezoarError(
            f"Ray Data left out {missing} cells. What was answered is kept: run the same command again"
        )


def lines(cell: bytes) -> list[bytes]:
    """The items or rows of a cell."""
    return cell.split(b"\n") if cell else []


class _Actor:
    """An actor with one open model; the work itself is the function's."""

    def __init__(
        self,
        work: ModelStage,
        place: RunContext,
        meter: "tuple[Meter | None, str]",
        index: "ray.ObjectRef[Index]",
        items: Spool | None = None,
    ):
        import ray
        import uvloop

        redirect(place.log(f"{work.role}.log"))
        store, stage = Store(place.root), ROLES[work.role]
        keep_events(store, stage=stage, role=work.role)
        hold_gpus(store.name, stage)
        uvloop.install()  # before Ray makes the loop in which the calls run
        self._work, self._place, self._meter, self._items = work, place, meter, items
        self._index = ray.get(index)  # of the ledger, mapped into this process's memory
        self._talker: Any = None

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        if batch.get("error", [b""])[
            0
        ]:  # of an earlier pass: it ends the graph where its cells are read
            return {"cell": [b""], "error": [batch["error"][0]]}
        try:
            if (
                self._talker is None
            ):  # here and not in __init__: an engine wants the running loop
                self._talker = self._opened()
                event("model opened", model=self._work.part.model)
            rows = await to_the_end(map(self._rows, self._read(batch)))
            return {"cell": [b"\n".join(chain.from_iterable(rows))], "error": [b""]}
        except ModelDied as error:
            event(
                "engine died",
                logging.ERROR,
                model=self._work.part.model,
                why=str(error),
            )
            traceback.print_exception(error)
            os._exit(
                1
            )  # Ray Data starts another actor, which does this one's cells again
        except Exception as error:  # sent as ours: Ray would wrap it and add advice of its own to its message
            return {"cell": [b""], "error": [pickle.dumps(self._ours(error))]}

    def _read(self, batch: dict[str, Any]) -> list[bytes]:
        if self._items is None:
            return lines(batch["cell"][0])
        return self._items.read(range(batch["start"][0], batch["stop"][0]))

    async def _rows(self, item: bytes) -> list[bytes]:
        return [row async for row in self._work.function(item, self._talker)]

    def _opened(self) -> "ModelClient":
        work, place, (meter, line) = self._work, self._place, self._meter
        if place.held and not Store(place.root).exists(
            SESSION
        ):  # what is paid for here would be lost
            raise BezoarError(unseen(place.root, "which joined after the start"))
        limited = quota_client(meter, line) if meter else None
        return open_client(
            work.part,
            place.root,
            work.role,
            place.session,
            permits=limited,
            index=self._index,
        )

    def _ours(self, error: Exception) -> BezoarError:
        if isinstance(error, BezoarError):
            return error
        traceback.print_exception(error)
        role = self._work.role
        return BezoarError(
            f"{role}: {type(error).__name__}: {error}. More in {self._place.log(f'{role}.log')}"
        )


def _mapped(
    rows: "ray.data.Dataset", work: ModelStage, size: int, arguments: tuple[object, ...]
) -> "ray.data.Dataset":
    """A data set of cells, worked on by a pool of actors."""
    import ray

    part, tasks = work.part, _tasks(work.part, size)
    return rows.map_batches(
        _Actor,
        fn_constructor_args=arguments,
        batch_size=1,  # a cell; Ray Data refuses None where an actor asks for a GPU
        compute=ray.data.ActorPoolStrategy(
            min_size=part.actors,
            max_size=part.most_actors,
            max_tasks_in_flight_per_actor=2 * tasks,
            max_concurrent_calls_per_actor=tasks,
        ),
        num_cpus=part.num_cpus,
        num_gpus=part.num_gpus,
        **part.placement,
    )


def _tasks(part: ModelSection, size: int) -> int:
    """Cells of `size` items that an actor works on at a time: twice as many items as it has slots."""
    return max(_UNDER_WAY, 2 * part.max_in_flight // size)


def _meter(passes: list[ModelStage], place: RunContext) -> "Meter | None":
    """The handle of the meter that all actors share; None where nothing is limited."""
    import ray

    of_lines = {
        str(n): quota_limits(work.part, work.role, place.limits)
        for n, work in enumerate(passes)
    }
    if not any(of_lines.values()):
        return None
    # Never restarted: another one would not know what the first has granted and nobody has written down yet.
    options = {
        "num_cpus": 0,
        "max_concurrency": 1000,
        "scheduling_strategy": beside_driver(),
    }
    meter = (
        ray.remote(RunQuotaServer)
        .options(**options)
        .remote(place.root, of_lines, place.limits)
    )
    return cast("Meter", meter)


def _drain(cells: Iterator[object], under_way: int) -> None:
    """After a fault: let calls that are on their way be answered and recorded, as they are paid for."""
    rest = threading.Thread(
        target=lambda: deque(islice(cells, under_way), maxlen=0), daemon=True
    )
    rest.start()
    rest.join(_DRAIN_SECONDS)  # whoever hangs is not waited for
