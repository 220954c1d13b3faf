"""A Ray Data graph of async actors that call models. generate and filter run on it.

Blocks of rows travel between the actors. An actor task works on one block, and tasks of
an actor overlap, so that a slow row delays its own block alone. A block of input rows
becomes one block of output rows, in the same order. When an actor dies, Ray Data starts
another one, which repeats its blocks and finds the finished calls in the ledger. Input
rows stay on disk (`Spool`): Ray passes only the numbers of their record batches.
"""

import logging
import os
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from bezoar_ray.data.row import StageRow
from bezoar_ray.data.spool import ROWS_PER_BATCH, Spool
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.llm.chat import Chat, ModelDied
from bezoar_ray.llm.client import open_client
from bezoar_ray.llm.ledger import ROLES, SESSION
from bezoar_ray.llm.ledger_index import read_index
from bezoar_ray.llm.limits import (
    BudgetLimit,
    RunQuotaServer,
    budget_limits,
    quota_client,
    quota_limits,
)
from bezoar_ray.pipeline.block import Block, decode_block, encode_block
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
    from bezoar_ray.llm.ledger_index import LedgerIndex

    QuotaServerHandle = ActorHandle[RunQuotaServer]

In = TypeVar("In", bound=StageRow)
Out = TypeVar("Out", bound=StageRow)

# Blocks that an actor works on at a time, at least: while some of them end, the others
# keep the slots of the model filled.
_MIN_TASKS = 4
# Tasks that are queued at an actor for each task that runs, so that none waits for Ray.
_QUEUED_PER_TASK = 2
_DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class ModelStage(Generic[In, Out]):
    """One model, and the function that calls it for each row."""

    process: Callable[[In, Chat], AsyncIterator[Out]]
    """Yields the output rows of one input row. The chat records its calls in the ledger
    under the id of that row."""
    section: ModelSection
    """The section of the recipe that describes the model."""
    role: str
    input_type: type[In]
    output_type: type[Out]


@dataclass(frozen=True)
class RunContext:
    """The run for which models are called."""

    root: str
    """The run directory, whose ledger records the calls."""
    session: str
    limits: tuple[BudgetLimit, ...] = ()
    locked: bool = False
    """A command has locked the run directory. Its lock file is then visible on every
    node that sees the directory."""

    def log(self, name: str) -> Path:
        """Return the path of a log on this node."""
        return Store(self.root).log(name)


def run_context(context: StageContext) -> RunContext:
    """Return the run that a stage belongs to."""
    return RunContext(
        root=str(context.store.root),
        session=context.session,
        limits=budget_limits(context.recipe),
        locked=context.store.exists(SESSION),
    )


def stream_rows(
    inputs: Sequence[tuple[Spool[In], ModelStage[In, Out]]],
    downstream: Sequence[ModelStage[Out, Out]],
    context: RunContext,
) -> Iterator[Out]:
    """Yield the rows that the last stage makes, as they are finished.

    Each stage has from `section.actors` to `section.max_actors` actors. An actor opens
    its model once and has at most `section.max_in_flight` calls under way. Stages
    overlap. Ray's object store bounds the blocks that wait between them.

    Args:
        inputs: The stages that read rows from disk, each with its own rows.
        downstream: The stages through which the rows of all input stages then pass.
        context: The run whose ledger and limits apply.

    Raises:
        BezoarError: As raised in an actor. Other errors arrive as Ray raises them.
    """
    branches = []
    for spool, stage in inputs:
        if spool.batches:
            blocks = spool.blocks(stage.section.max_in_flight)
            branches.append(_Branch(spool, stage, blocks))
    if not branches:
        return
    stages = _all_stages(branches, downstream)
    # Ray Data would wait forever for actors that no node can hold.
    _check_capacity(stages)
    graph = _build_graph(branches, downstream, context)
    output_type = stages[-1].output_type
    missing = sum(len(branch.blocks) for branch in branches)
    encoded_blocks = _iter_blocks(graph)
    for encoded in encoded_blocks:
        block = decode_block(encoded, output_type)
        if block.error:
            # The smallest blocks, of which an actor has the most under way.
            block_size = min(branch.block_size for branch in branches)
            _drain(encoded_blocks, _max_under_way(stages, block_size))
            raise block.error
        missing -= 1
        yield from block.rows
    # Without this check, a stage would count as done although rows are missing.
    if missing:
        raise BezoarError(
            f"Ray Data returned {missing} fewer blocks than expected. "
            "Finished calls are saved; run the same command again to resume"
        )


@dataclass(frozen=True)
class _Branch(Generic[In, Out]):
    """An input stage with its rows, and the blocks into which they are divided."""

    spool: Spool[In]
    stage: ModelStage[In, Out]
    blocks: list[range]

    @property
    def block_size(self) -> int:
        """Rows of a full block."""
        return ROWS_PER_BATCH * len(self.blocks[0])


def _all_stages(
    branches: Sequence[_Branch[In, Out]], downstream: Sequence[ModelStage[Out, Out]]
) -> list[ModelStage[Any, Any]]:
    return [*(branch.stage for branch in branches), *downstream]


def _check_capacity(stages: Sequence[ModelStage[Any, Any]]) -> None:
    requests = []
    for stage in stages:
        section = stage.section
        request = ResourceRequest.of(section, section.actors, section.model)
        requests.append(request)
    check_capacity(requests)


def _build_graph(
    branches: Sequence[_Branch[In, Out]],
    downstream: Sequence[ModelStage[Out, Out]],
    context: RunContext,
) -> "ray.data.Dataset":
    """Return the Ray Data set of all output blocks. Iterating over it runs it."""
    import ray

    quieten(ray.data.DataContext.get_current())
    stages = _all_stages(branches, downstream)
    quota_server = _start_quota_server(stages, context)
    # One copy of each role's index on a node, which its actors map into their memory.
    indexes = {
        role: ray.put(read_index(context.root, role, context.session))
        for role in {stage.role for stage in stages}
    }
    configs = [
        _ActorConfig(
            stage=stage,
            context=context,
            ledger_index=indexes[stage.role],
            quota_server=quota_server,
            channel=_channel(stage_index),
        )
        for stage_index, stage in enumerate(stages)
    ]
    outputs = []
    # `configs` begins with the input stages, in the same order.
    for branch, config in zip(branches, configs, strict=False):
        numbers = [
            {"start": block.start, "stop": block.stop} for block in branch.blocks
        ]
        # A Ray block for each of ours, so that an actor's task is one block.
        blocks = ray.data.from_items(numbers, override_num_blocks=len(numbers))
        config = replace(config, spool=branch.spool)
        outputs.append(_map_blocks(blocks, config, branch.block_size))
    dataset = outputs[0]
    if len(outputs) > 1:
        dataset = dataset.union(*outputs[1:])
    block_size = max(branch.block_size for branch in branches)
    for config in configs[len(branches) :]:
        dataset = _map_blocks(dataset, config, block_size)
    return dataset


def _map_blocks(
    blocks: "ray.data.Dataset", config: "_ActorConfig[Any, Any]", block_size: int
) -> "ray.data.Dataset":
    """Add a pool of actors to the graph. `block_size` is the rows of a full block."""
    import ray

    section = config.stage.section
    tasks = _tasks_per_actor(section, block_size)
    # Ray Data overlaps the tasks of an actor only if its `__call__` is async.
    return blocks.map_batches(
        _ModelActor,
        fn_constructor_args=(config,),
        # One block. Ray Data refuses None where an actor asks for a GPU.
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=section.actors,
            max_size=section.most_actors,
            max_tasks_in_flight_per_actor=_QUEUED_PER_TASK * tasks,
            max_concurrent_calls_per_actor=tasks,
        ),
        num_cpus=section.num_cpus,
        num_gpus=section.num_gpus,
        **section.placement,
    )


def _tasks_per_actor(section: ModelSection, block_size: int) -> int:
    """Return the number of blocks that an actor works on at a time.

    They hold twice as many rows as the model has slots.
    """
    return max(_MIN_TASKS, 2 * section.max_in_flight // block_size)


def _max_under_way(stages: Sequence[ModelStage[Any, Any]], block_size: int) -> int:
    """Return the number of blocks that all actors may have running or queued."""
    total = 0
    for stage in stages:
        tasks = _tasks_per_actor(stage.section, block_size)
        total += _QUEUED_PER_TASK * tasks * stage.section.most_actors
    return total


def _iter_blocks(graph: "ray.data.Dataset") -> Iterator[dict[str, Any]]:
    """Run the graph and yield its encoded output blocks."""
    # None gives blocks as they come. To fill batches, Ray would
    # hold finished rows back.
    tables: Any = graph.iter_batches(batch_size=None, batch_format="pyarrow")
    for table in tables:
        yield from table.to_pylist()


def _drain(encoded_blocks: Iterator[object], under_way: int) -> None:
    """Let calls that are under way after an error be answered and recorded.

    They are paid for, whether or not anybody waits for the answer.
    """
    # In a thread, since Ray's iterator takes no time limit.
    finish = threading.Thread(
        target=lambda: deque(islice(encoded_blocks, under_way), maxlen=0), daemon=True
    )
    finish.start()
    finish.join(_DRAIN_SECONDS)  # A call that hangs is not waited for.


def _start_quota_server(
    stages: Sequence[ModelStage[Any, Any]], context: RunContext
) -> "QuotaServerHandle | None":
    """Start the quota server that all actors share, if anything limits their calls."""
    import ray

    limits_of_channels = {
        _channel(stage_index): quota_limits(stage.section, stage.role, context.limits)
        for stage_index, stage in enumerate(stages)
    }
    if not any(limits_of_channels.values()):
        return None
    # Ray does not restart it: a second server would not know which grants of the first
    # one are in use and not yet recorded.
    server = (
        # A request may wait for minutes and every actor has one, so that many must fit
        # in. It stays beside the driver: without it, no call can go out.
        ray.remote(RunQuotaServer)
        .options(num_cpus=0, max_concurrency=1000, scheduling_strategy=beside_driver())
        .remote(context.root, limits_of_channels, context.limits)
    )
    return cast("QuotaServerHandle", server)


def _channel(stage_index: int) -> str:
    """Return the name under which a stage draws on the quota server."""
    return str(stage_index)


@dataclass(frozen=True)
class _ActorConfig(Generic[In, Out]):
    """The constructor argument of `_ModelActor`."""

    stage: ModelStage[In, Out]
    context: RunContext
    ledger_index: "ray.ObjectRef[LedgerIndex]"
    """The role's answers of earlier commands."""
    quota_server: "QuotaServerHandle | None"
    channel: str
    spool: Spool[In] | None = None
    """The input rows. None for a downstream stage, which is sent its rows."""


class _ModelActor(Generic[In, Out]):
    """A Ray actor that opens the model of a stage and applies `process` to blocks."""

    def __init__(self, config: _ActorConfig[In, Out]):
        import ray
        import uvloop

        self._config = config
        role = config.stage.role
        store = Store(config.context.root)
        redirect(config.context.log(f"{role}.log"))
        keep_events(store, stage=ROLES[role], role=role)
        hold_gpus(store.name, ROLES[role])
        uvloop.install()  # before Ray creates the event loop in which the calls run
        # Ray maps the object into this process's memory.
        self._ledger_index = ray.get(config.ledger_index)
        self._client: ModelClient | None = None

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the output block of an input block, or the error that ends it."""
        try:
            return encode_block(await self._process_block(batch))
        except ModelDied as error:
            model = self._config.stage.section.model
            event("engine died", logging.ERROR, model=model, why=str(error))
            traceback.print_exception(error)
            # Ray Data starts another actor, which repeats the blocks of this one.
            os._exit(1)
        except Exception as error:
            # Returned and not raised: Ray would wrap it and add advice to its message.
            return encode_block(Block([], self._as_bezoar_error(error)))

    async def _process_block(self, batch: dict[str, Any]) -> Block[Out]:
        block = self._read_block(batch)
        if block.error:
            # Of an earlier stage. The driver raises it when it reads this block.
            return Block([], block.error)
        client = self._open_once()
        outputs = await to_the_end(self._process(row, client) for row in block.rows)
        return Block([row for rows in outputs for row in rows])

    def _read_block(self, batch: dict[str, Any]) -> Block[In]:
        columns = {name: column[0] for name, column in batch.items()}
        if self._config.spool is None:
            return decode_block(columns, self._config.stage.input_type)
        batches = range(columns["start"], columns["stop"])
        return Block(self._config.spool.read(batches))

    async def _process(self, row: In, client: "ModelClient") -> list[Out]:
        chat = client.for_row(row.id)
        return [output async for output in self._config.stage.process(row, chat)]

    def _open_once(self) -> "ModelClient":
        """Return the open model. An engine needs the running loop, which the
        constructor does not have."""
        if self._client is None:
            self._client = self._open()
            event("model opened", model=self._config.stage.section.model)
        return self._client

    def _open(self) -> "ModelClient":
        stage = self._config.stage
        context = self._config.context
        if context.locked and not Store(context.root).exists(SESSION):
            # Paid calls would be recorded on this node's own disk, and be lost.
            raise BezoarError(unseen(context.root, "which joined after the start"))
        quota = None
        if self._config.quota_server:
            quota = quota_client(self._config.quota_server, self._config.channel)
        return open_client(
            stage.section,
            context.root,
            stage.role,
            context.session,
            quota=quota,
            index=self._ledger_index,
        )

    def _as_bezoar_error(self, error: Exception) -> BezoarError:
        if isinstance(error, BezoarError):
            return error
        traceback.print_exception(error)
        role = self._config.stage.role
        log = self._config.context.log(f"{role}.log")
        return BezoarError(f"{role}: {type(error).__name__}: {error}. More in {log}")
