"""Ray Train: the stage's loop on its workers, with progress on the driver's line and logs out of sight."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass
from threading import Thread
from typing import Any

import orjson

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import Recipe, Training
from bezoar_ray.room import Ask, check_room
from bezoar_ray.rows import row_id
from bezoar_ray.stage import Context
from bezoar_ray.store import Store
from bezoar_ray.train.prepared import Prepared

POLL_SECONDS = 0.5
_STOP_SECONDS = 28.0  # for a last checkpoint: a preempted node is given 30


@dataclass(frozen=True)
class Job:
    """What a worker is told: everything else it reads from the run directory."""

    root: str
    recipe: Recipe
    stage: str
    name: str
    data: tuple[Prepared, ...]

    @property
    def store(self) -> Store:
        """The run directory."""
        return Store(self.root)

    @property
    def part(self) -> Training:
        """The stage's part of the recipe."""
        return self.recipe.training(self.stage)

    @property
    def folder(self) -> str:
        """Where the stage keeps what is no result: checkpoints, progress."""
        return f"train/{self.stage}"


STOP = "stop"  # the file by which a driver that is being stopped asks its workers to stop

Loop = Callable[[Job], dict[str, Any]]
"""What runs on every worker. Rank 0's return value is the stage's result."""


def fit(context: Context, stage: str, loop: Loop, data: list[Prepared], inputs: list[str]) -> dict[str, Any]:
    """Run a loop to its end on the workers that the recipe names.

    A run of the same recipe part on the same data and inputs (files or folders of the run directory) goes on from its
    last checkpoint, after a worker's death or the whole job's; any other starts afresh.

    Raises:
        RecipeError: the cluster never has room for the workers.
        BezoarError: what the loop itself raised, or that it failed more often than `max_failures`; names the log.
    """
    part = context.recipe.training(stage)
    check_room([Ask.each(part, part.cpus_per_worker, part.gpus_per_worker, part.workers, f"{stage}'s workers")])
    job = Job(str(context.store.root), context.recipe, stage, _name(context, stage, data, inputs), tuple(data))
    _tidy(job)
    ended: Future[None] = Future()
    Thread(target=_settle, args=(ended, job, loop), daemon=True).start()
    _watch(context, job, ended)
    result = context.store.read_json(f"{job.folder}/result.json")
    if "error" in result:
        raise (RecipeError if result["recipe"] else BezoarError)(result["error"])
    return result


def _name(context: Context, stage: str, data: list[Prepared], inputs: list[str]) -> str:
    """A name for the run that changes with whatever a checkpoint depends on."""
    recipe, part = context.recipe, context.recipe.training(stage)
    sets = [(found.file, found.batch(part)) for found in data]
    what = [part.what(), part.zero_stage, recipe.base.what(), recipe.seed, sets]
    text = orjson.dumps(what, option=orjson.OPT_SORT_KEYS).decode()
    return row_id(text, context.store.digest(*inputs))


def _tidy(job: Job) -> None:
    """Remove what other runs of the stage left, and the last attempt's progress."""
    names = {file.removeprefix(f"{job.folder}/").split("/")[0] for file in job.store.list(job.folder)}
    for name in names - {job.name}:
        job.store.remove(f"{job.folder}/{name}")


def _settle(ended: "Future[None]", job: Job, loop: Loop) -> None:
    """Fit, in a thread of its own: in the main thread Ray Train would take over Ctrl-C for good."""
    try:
        ended.set_result(_run(job, loop))
    except Exception as error:
        ended.set_exception(error)


def _run(job: Job, loop: Loop) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    part = job.part
    trainer = TorchTrainer(
        _enter,
        train_loop_config={"job": job, "loop": loop},
        torch_config=TorchConfig(backend="nccl" if part.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=part.workers,
            use_gpu=part.gpus_per_worker > 0,
            resources_per_worker=_resources(part),
            **part.placement,
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

    from bezoar_ray.logs import event, keep_events, redirect

    job: Job = config["job"]
    redirect(job.store.log(f"{job.stage}.log"))
    rank = str(get_context().get_world_rank())
    keep_events(job.store, stage=job.stage, rank=rank)
    event("training begins or goes on")
    try:
        result = config["loop"](job)
    except BezoarError as error:  # ours, and no retry would mend it
        result = {"error": str(error), "recipe": isinstance(error, RecipeError)}
    if get_context().get_world_rank() == 0:
        job.store.replace_json(f"{job.folder}/result.json", result)


def _watch(context: Context, job: Job, ended: "Future[None]") -> None:
    """Show how far the workers are until they end."""
    name = f"{job.folder}/progress.json"
    while True:
        try:
            return ended.result(timeout=POLL_SECONDS)
        except StillRunning:
            if at := context.store.read_json(name):
                context.progress.update(at["step"], at["total"], at["note"])
        except KeyboardInterrupt:
            _stop(context, job, ended)
            raise
        except Exception as error:
            log = context.store.log(f"{job.stage}.log")
            raise BezoarError(f"{job.stage}: training failed: {_cause(error)}. More in {log}") from error


def _stop(context: Context, job: Job, ended: "Future[None]") -> None:
    """Have the workers write a last checkpoint, from which the next command goes on."""
    context.progress.say("stopping: a last checkpoint is being written")
    context.store.replace(f"{job.folder}/{STOP}", b"")
    with contextlib.suppress(Exception):  # whatever it is, the last checkpoint that is whole counts
        ended.result(timeout=_STOP_SECONDS)


def _cause(error: Exception) -> str:
    """The worker's own last words, without Ray's frame around them."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(failures.values()))).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def report_progress(job: Job, step: int, total: int, note: str, accuracy: float | None) -> None:
    """Tell the driver how far the stage is, and what share of the last pairs it gets right; for rank 0."""
    at = {"step": step, "total": total, "note": note, "accuracy": accuracy}
    job.store.replace_json(f"{job.folder}/progress.json", at)
