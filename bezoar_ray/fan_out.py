"""A Ray Data graph of async actors that talk to models: how generate and filter spread their rows.

Between the actors travel cells: a few items or rows, each a line of JSON, in one bytes value. A task works on one cell,
and tasks overlap, so that a slow item holds up its own cell alone. A cell in gives a cell out, its rows in the order of
the items: where an actor dies, Ray Data starts another, which does its cells again, and finds in the ledger what was
answered before.
"""

import asyncio
import contextlib
import math
import os
import pickle
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.llm.chat import ModelDied
from bezoar_ray.llm.client import open_talker
from bezoar_ray.llm.limits import Limit, RunMeter, limits, permits, terms
from bezoar_ray.logs import redirect
from bezoar_ray.recipe import ModelPart
from bezoar_ray.stage import Context

Function = Callable[[bytes, Any], AsyncIterator[bytes]]  # an item and the actor's Talker, to rows

_FEW = 4  # items in a cell: what is done goes on soon, and a slow chain holds up little
_ITEM = pa.schema([("item", pa.binary())])
_CELLS_PER_READ = 256
_READING_CPUS = 0.11  # no actor's number: Ray Data would fuse reading with actors that ask for the same
_DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Pass:
    """One model, and what is done with it to each item."""

    function: Function
    part: ModelPart
    role: str


@dataclass(frozen=True)
class Place:
    """On whose account the models are talked to."""

    root: str  # the run directory, whose ledger keeps the calls
    session: str
    limits: tuple[Limit, ...] = ()


def place(context: Context) -> Place:
    """The run that a stage belongs to."""
    return Place(str(context.store.root), context.session, limits(context.recipe))


@dataclass(frozen=True)
class Cells:
    """Items on disk, as an Arrow file with one record batch a cell: never all of them in memory."""

    path: str
    count: int
    size: int  # items in a cell, but for the last

    def items(self) -> Iterator[bytes]:
        """All items, in their order."""
        with pa.memory_map(self.path) as file:
            reader = pa.ipc.open_file(file)
            for number in range(self.count):
                yield from reader.get_batch(number).column(0).to_pylist()

    def load(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """The cells whose numbers a batch holds."""
        with pa.memory_map(self.path) as file:
            reader = pa.ipc.open_file(file)
            items = [reader.get_batch(int(number)).column(0).to_pylist() for number in batch["id"]]
        return {"cell": [b"\n".join(cell) for cell in items]}


class CellWriter:
    """Writes items as cells of `size`: few where an item takes many calls. Ray spends some milliseconds on a cell."""

    def __init__(self, path: Path, size: int = _FEW):
        self._size = size
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, _ITEM)
        self._path, self._items, self._count = str(path), list[bytes](), 0

    def add(self, item: bytes) -> None:
        """The next item."""
        self._items.append(item)
        if len(self._items) == self._size:
            self._write()

    def close(self) -> Cells:
        """The cells, all written."""
        if self._items:
            self._write()
        self._writer.close()
        self._sink.close()
        return Cells(self._path, self._count, self._size)

    def _write(self) -> None:
        self._writer.write_batch(pa.record_batch([pa.array(self._items, pa.binary())], schema=_ITEM))
        self._items, self._count = [], self._count + 1


def spool(items: Iterable[bytes], path: Path, part: ModelPart) -> Cells:
    """Write items for a model that is asked one thing of each: two cells fill its slots.

    On a cluster the path has to be one that all nodes see.
    """
    writer = CellWriter(path, max(_FEW, part.max_in_flight // 2))
    for item in items:
        writer.add(item)
    return writer.close()


def fan_out(heads: list[tuple[Cells, Pass]], tail: list[Pass], place: Place) -> Iterator[bytes]:
    """The rows of all items, as they are done: each head works on its own cells, then the passes of the tail on all.

    Every pass has `part.actors` to `part.max_actors` actors, which open their model once and have at most
    `part.max_in_flight` calls under way. Passes overlap; what waits between them is bounded by Ray's object store.

    Raises:
        BezoarError: as raised in an actor; other errors come as Ray raises them.
    """
    heads = [(cells, work) for cells, work in heads if cells.count]
    if not heads:
        return
    import ray

    passes = [work for _, work in heads] + tail
    size = min(cells.size for cells, _ in heads)
    _check_room(passes)
    meter = _meter(passes, place)
    with _quiet_blocks(ray.data.DataContext.get_current()):
        branches = [
            _mapped(_dataset(cells), work, size, (work, place, (meter, str(n))))
            for n, (cells, work) in enumerate(heads)
        ]
        rows = branches[0].union(*branches[1:]) if branches[1:] else branches[0]
        for n, work in enumerate(tail, len(heads)):
            rows = _mapped(rows, work, size, (work, place, (meter, str(n))))
        cells = (
            cell
            for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow")
            for cell in zip(batch["cell"].to_pylist(), batch["error"].to_pylist(), strict=True)
        )
        missing = sum(cells_of_head.count for cells_of_head, _ in heads)
        for cell, error in cells:
            if error:
                _drain(cells, sum(2 * _tasks(work.part, size) * work.part.most_actors for work in passes))
                raise pickle.loads(error)
            missing -= 1
            yield from lines(cell)
    if missing:  # nothing of a run may be called whole that is not
        raise BezoarError(f"Ray Data left out {missing} cells. What was answered is kept: run the same command again")


def lines(cell: bytes) -> list[bytes]:
    """The items or rows of a cell."""
    return cell.split(b"\n") if cell else []


class _Actor:
    """An actor with one open model; the work itself is the function's."""

    def __init__(self, work: Pass, place: Place, meter: tuple[Any, str]):
        redirect(Path(place.root) / "logs" / f"{work.role}.log")
        self._work, self._place, self._meter = work, place, meter
        self._talker: Any = None

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        if batch.get("error", [b""])[0]:  # of an earlier pass: it ends the graph where its cells are read
            return {"cell": [b""], "error": [batch["error"][0]]}
        try:
            if self._talker is None:  # here and not in __init__: an engine wants the running loop
                self._talker = self._opened()
            (cell,) = batch["cell"]
            rows = await asyncio.gather(*map(self._rows, lines(cell)))
            return {"cell": [b"\n".join(chain.from_iterable(rows))], "error": [b""]}
        except ModelDied as error:
            traceback.print_exception(error)
            os._exit(1)  # Ray Data starts another actor, which does this one's cells again
        except Exception as error:  # sent as ours: Ray would wrap it and add advice of its own to its message
            return {"cell": [b""], "error": [pickle.dumps(self._ours(error))]}

    async def _rows(self, item: bytes) -> list[bytes]:
        return [row async for row in self._work.function(item, self._talker)]

    def _opened(self) -> Any:
        work, place, (meter, line) = self._work, self._place, self._meter
        return open_talker(work.part, place.root, work.role, place.session, permits=meter and permits(meter, line))

    def _ours(self, error: Exception) -> BezoarError:
        if isinstance(error, BezoarError):
            return error
        traceback.print_exception(error)
        role = self._work.role
        return BezoarError(f"{role}: {type(error).__name__}: {error}. More in {self._place.root}/logs/{role}.log")


def _mapped(rows: Any, work: Pass, size: int, arguments: tuple[Any, ...]) -> Any:
    """A data set of cells, worked on by a pool of actors."""
    import ray

    part, tasks = work.part, _tasks(work.part, size)
    return rows.map_batches(
        _Actor,
        fn_constructor_args=arguments,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(
            min_size=part.actors,
            max_size=part.most_actors,
            max_tasks_in_flight_per_actor=2 * tasks,
            max_concurrent_calls_per_actor=tasks,
        ),
        num_cpus=part.num_cpus,
        num_gpus=part.num_gpus,
    )


def _tasks(part: ModelPart, size: int) -> int:
    """Cells that an actor works on at a time: enough to fill its slots while some wait for their slowest item."""
    return max(2, 2 * part.max_in_flight // size)


def _dataset(cells: Cells) -> Any:
    import ray

    numbers = ray.data.range(cells.count, override_num_blocks=math.ceil(cells.count / _CELLS_PER_READ))
    return numbers.map_batches(cells.load, batch_size=1, num_cpus=_READING_CPUS, concurrency=1)


def _meter(passes: list[Pass], place: Place) -> Any:
    """The handle of the meter that all actors share; None where nothing is limited."""
    import ray

    of_lines = {str(n): terms(work.part, work.role, place.limits) for n, work in enumerate(passes)}
    if not any(of_lines.values()):
        return None
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=1000)(RunMeter)
    return actor.remote(place.root, of_lines, place.limits)


def _check_room(passes: list[Pass]) -> None:
    """On this machine alone, whose resources nobody adds to, actors that can never all start are refused at once."""
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return
    there = ray.cluster_resources()
    asked = {"CPU": _READING_CPUS, "GPU": 0.0}
    for work in passes:
        asked["CPU"] += work.part.actors * work.part.num_cpus
        asked["GPU"] += work.part.actors * work.part.num_gpus
    for kind, count in asked.items():
        if count > there.get(kind, 0.0):
            models = ", ".join(f"{work.part.model} ({work.part.actors} actors)" for work in passes)
            raise RecipeError(
                f"{models} ask for {count:g} {kind}s at the same time, and Ray has {there.get(kind, 0):g} here. "
                f"Lower num_{kind.lower()}s or actors of one of them, or run one stage alone: --stages generate"
            )


def _drain(cells: Iterator[Any], under_way: int) -> None:
    """After a fault: let calls that are on their way be answered and recorded, as they are paid for."""
    end = time.monotonic() + _DRAIN_SECONDS
    for _ in islice(cells, under_way):
        if time.monotonic() > end:
            return


@contextlib.contextmanager
def _quiet_blocks(context: Any) -> Iterator[None]:
    """Ray Data passes each cell on by itself, and leaves the terminal to our own line."""
    import logging

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends a pass is raised
    before = context.target_max_block_size
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1
    try:
        yield
    finally:
        context.target_max_block_size = before
