"""Ray Train: the stage's loop on its workers, with progress on the driver's line and logs out of sight."""

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass
from threading import Thread
from typing import Any

import orjson

from bezoar_ray import layout
from bezoar_ray.data.schema import row_id
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import Recipe, Training
from bezoar_ray.runtime.capacity import check_capacity, of_workers
from bezoar_ray.runtime.dtype import compute_dtype
from bezoar_ray.runtime.session import unseen
from bezoar_ray.stages import STAGES, StageContext
from bezoar_ray.store import Store
from bezoar_ray.train.tokenized_dataset import TokenizedDataset

POLL_SECONDS = 0.5
_ENDED = "ended"  # of a run, beside what it depends on
_STOP_SECONDS = 28.0  # for a last checkpoint: a preempted node is given 30


@dataclass(frozen=True)
class Job:
    """What a worker is told: everything else it reads from the run directory."""

    root: str
    recipe: Recipe
    stage: str
    name: str
    data: tuple[TokenizedDataset, ...]

    @property
    def store(self) -> Store:
        """The run directory."""
        return Store(self.root)

    @property
    def section(self) -> Training:
        """The stage's section of the recipe."""
        return self.recipe.training(self.stage)

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint that the stage makes."""
        return self.recipe.checkpoint(self.stage)

    @property
    def dtype(self) -> str:
        """In which type a worker computes."""
        return compute_dtype(
            self.recipe.base.dtype, gpu=self.section.gpus_per_worker > 0
        )

    @property
    def folder(self) -> str:
        """Where the stage keeps what is no result: checkpoints, progress."""
        return layout.training(STAGES[self.stage].key)


STOP = (
    "stop"  # the file by which a driver that is being stopped asks its workers to stop
)
PROGRESS = "progress.json"  # how far rank 0 is

Loop = Callable[[Job], dict[str, object]]
"""What runs on every worker. Rank 0's return value is the stage's result."""


def fit(
    context: StageContext,
    stage: str,
    loop: Loop,
    data: list[TokenizedDataset],
    inputs: list[str],
) -> dict[str, Any]:
    """Run a loop to its end on the workers that the recipe names.

    A run of the same recipe part on the same data and inputs (files or folders of the run directory) goes on from its
    last checkpoint, after a worker's death or the whole job's; any other starts afresh and says what differs. The
    checkpoint of the one before is kept until it ends: with the old recipe back, that one goes on.

    Raises:
        RecipeError: the cluster never has room for the workers.
        BezoarError: what the loop itself raised, or that it failed more often than `max_failures`; names the log.
    """
    check_capacity([of_workers(context.recipe.training(stage), stage)])
    what = _what(context, stage, data, inputs)
    name = row_id(orjson.dumps(what, option=orjson.OPT_SORT_KEYS).decode())
    job = Job(str(context.store.root), context.recipe, stage, name, tuple(data))
    _begin(context, job, what)
    ended: Future[None] = Future()
    Thread(target=_settle, args=(ended, job, loop), daemon=True).start()
    _watch(context, job, ended)
    result = context.store.read_json(f"{job.folder}/result.json")
    if "error" in result:
        raise (RecipeError if result["recipe"] else BezoarError)(result["error"])
    for other in _runs(job) - {job.name}:
        _remove(job, {other, f"{other}.json"})
    job.store.replace_json(f"{job.folder}/{job.name}.json", what | {_ENDED: True})
    return result


def _what(
    context: StageContext, stage: str, data: list[TokenizedDataset], inputs: list[str]
) -> dict[str, object]:
    """Whatever a checkpoint depends on. Under ZeRO each worker keeps a share of it."""
    recipe, part = context.recipe, context.recipe.training(stage)
    shares = (
        {"zero_stage": part.zero_stage, "workers": part.workers}
        if part.zero_stage
        else {}
    )
    base = {
        f"base.{name}": value
        for name, value in recipe.base.fingerprint_fields().items()
    }
    rows, digest = [found.file for found in data], context.store.digest(*inputs)
    return {
        **part.fingerprint_fields(),
        **shares,
        **base,
        "seed": recipe.seed,
        "rows": rows,
        "what it starts from": digest,
    }


def _begin(context: StageContext, job: Job, what: dict[str, object]) -> None:
    """Remove the last attempt's progress; say why a run starts afresh beside one that was under way."""
    runs = _runs(job)
    _remove(job, _names(job) - runs - {f"{run}.json" for run in runs})
    if job.name in runs:
        return
    for before in (context.store.read_json(f"{job.folder}/{run}.json") for run in runs):
        if _ENDED not in before:
            context.progress.say(f"warning: {_afresh(job, before, what)}")
    context.store.replace_json(f"{job.folder}/{job.name}.json", what)


def _afresh(job: Job, before: dict[str, object], now: dict[str, object]) -> str:
    differ = [
        _change(name, before.get(name), now.get(name))
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    return (
        f"{job.stage} trains afresh. A training of it was under way, and differs: {', '.join(differ)}. Its last "
        "checkpoint is kept until this one ends: with the old recipe and data it goes on"
    )


def _change(name: str, before: object, now: object) -> str:
    plain = not isinstance(before, dict | list) and name != "what it starts from"
    return f"{name} was {before}, is {now}" if plain else name


def _runs(job: Job) -> set[str]:
    """Trainings of the stage that have begun: each has a folder, and beside it what it depends on."""
    names = _names(job)
    return {name for name in names if f"{name}.json" in names}


def _names(job: Job) -> set[str]:
    return {
        file.removeprefix(f"{job.folder}/").split("/")[0]
        for file in job.store.list(job.folder)
    }


def _remove(job: Job, names: set[str]) -> None:
    for name in names:
        job.store.remove(f"{job.folder}/{name}")


def _settle(ended: "Future[None]", job: Job, loop: Loop) -> None:
    """Fit, in a thread of its own: in the main thread Ray Train would take over Ctrl-C for good."""
    try:
        _run(job, loop)
        ended.set_result(None)
    except Exception as error:
        ended.set_exception(error)


def _run(job: Job, loop: Loop) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    part = job.section
    trainer = TorchTrainer(
        _enter,
        train_loop_config={"job": job, "loop": loop},
        torch_config=TorchConfig(backend="nccl" if part.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=part.workers,
            use_gpu=part.gpus_per_worker > 0,
            resources_per_worker=_resources(part),
            **part.placement,  # type: ignore[misc]  # Ray Train V2 has label_selector, and types know V1
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=f"{job.store.root}/{job.folder}",
            failure_config=FailureConfig(max_failures=part.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    trainer.fit()


def _resources(part: Training) -> dict[str, float]:
    gpus = {"GPU": part.gpus_per_worker} if part.gpus_per_worker else {}
    return {"CPU": part.cpus_per_worker, **gpus}


def _enter(config: dict[str, Any]) -> None:
    """A worker's way in: its output goes to the stage's log, rank 0's result to a file."""
    from ray.train import get_context

    from bezoar_ray.runtime.logs import keep_events, redirect
    from bezoar_ray.runtime.metrics import hold_gpus

    job: Job = config["job"]
    os.environ.setdefault(
        "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"
    )  # no two passes are of one size
    redirect(job.store.log(f"{job.stage}.log"))
    rank = str(get_context().get_world_rank())
    keep_events(job.store, stage=job.stage, rank=rank)
    hold_gpus(job.store.name, job.stage)
    _check_seen(job)
    try:
        result = config["loop"](job)
    except BezoarError as error:  # ours, and no retry would mend it
        result = {"error": str(error), "recipe": isinstance(error, RecipeError)}
    if get_context().get_world_rank() == 0:
        job.store.replace_json(f"{job.folder}/result.json", result)


def _check_seen(job: Job) -> None:
    """A node may have joined after the start, when the nodes were looked at."""
    if not job.store.exists(f"{job.folder}/{job.name}.json"):
        raise RecipeError(unseen(job.root, f"where {job.stage} is to be trained"))


def _watch(context: StageContext, job: Job, ended: "Future[None]") -> None:
    """Show how far the workers are until they end."""
    said: set[str] = set()
    try:
        while True:
            try:
                ended.result(timeout=POLL_SECONDS)
                return _show(context, job, said)
            except StillRunning:
                _show(context, job, said)
    except KeyboardInterrupt:  # at any of these lines
        _stop(context, job, ended)
        raise
    except Exception as error:
        log = context.store.where(f"{job.stage}.log")
        raise BezoarError(
            f"{job.stage}: training failed: {_cause(error)}. More in {log}"
        ) from error


def _show(context: StageContext, job: Job, said: set[str]) -> None:
    """The progress of rank 0, and once each what else it says."""
    with contextlib.suppress(
        BezoarError
    ):  # an outage of the bucket: the workers may know nothing of it
        if at := context.store.read_json(f"{job.folder}/{PROGRESS}"):
            context.progress.update(at["step"], at["total"], at["note"])
            for message in at["say"]:
                if message not in said:
                    said.add(message)
                    context.progress.say(message)


def _stop(context: StageContext, job: Job, ended: "Future[None]") -> None:
    """Have the workers write a last checkpoint, from which the next command goes on."""
    context.progress.say("stopping: a last checkpoint is being written")
    context.store.replace(f"{job.folder}/{STOP}", b"")
    with contextlib.suppress(
        Exception
    ):  # whatever it is, the last checkpoint that is whole counts
        ended.result(timeout=_STOP_SECONDS)


def _cause(error: Exception) -> str:
    """The worker's own last words, without Ray's frame around them."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(failures.values()))).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
