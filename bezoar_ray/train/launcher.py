"""Runs a stage's training on Ray Train's workers and shows its progress.

Output of the workers goes to the stage's log.
"""

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

STOP = "stop"
"""File by which a driver that is being stopped asks its workers to stop."""
PROGRESS = "progress.json"
"""File with the progress of rank 0."""
RESULT = "result.json"
"""File with the metrics of rank 0, or with its error."""
POLL_SECONDS = 0.5
_ENDED = "ended"
"""Further field of a run's record: whether the run has ended."""
_KEPT_RESULT = "result"
"""Further field of an ended part's record: its metrics."""
_INPUTS = "what it starts from"
"""Field of a run's record: a digest of files."""
_STOP_SECONDS = 28.0  # for a last checkpoint: a preempted node is given 30


@dataclass(frozen=True)
class Job:
    """The arguments of a worker; it reads everything else from the run directory."""

    root: str
    recipe: Recipe
    stage: str
    name: str
    """Of the Ray Train run, whose checkpoints are in a folder of this name."""
    data: tuple[TokenizedDataset, ...]
    part: str = ""
    """Of a stage that consists of several trainings: which of them this is."""

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
        """The type in which a worker computes."""
        on_gpu = self.section.gpus_per_worker > 0
        return compute_dtype(self.recipe.base.dtype, gpu=on_gpu)

    @property
    def folder(self) -> str:
        """The folder with the stage's state: Ray Train's checkpoints and progress."""
        return layout.training(STAGES[self.stage].key, self.part)

    @property
    def adapter(self) -> str:
        """The folder in which the trained adapter is saved."""
        if self.part:
            return layout.part_adapter(self.part)
        return layout.checkpoint(self.checkpoint).adapter


TrainOnWorker = Callable[[Job], dict[str, object]]
"""Runs on every worker. Rank 0 returns the stage's metrics."""


def fit(
    context: StageContext,
    stage: str,
    train_on_worker: TrainOnWorker,
    data: list[TokenizedDataset],
    inputs: list[str],
    part: str = "",
    outputs: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run a training on the workers that the recipe requests, and return its metrics.

    A run with the same recipe section, data and inputs resumes from its last
    checkpoint, after the death of a worker or of the whole job. Any other run starts
    afresh and names the differences. The checkpoint of the run before it is kept until
    the new one ends, so with the old recipe that run resumes.

    Args:
        context: the run directory and the recipe.
        stage: name of the stage.
        train_on_worker: runs on every worker.
        data: the tokenized rows.
        inputs: files or folders of the run directory on which the training depends.
        part: name of one of several trainings of the stage.
        outputs: files or folders that a part leaves. If it has ended and they are
            there, it is not run again.

    Raises:
        RecipeError: the cluster has no capacity for the workers.
        BezoarError: the training raised it, or it failed more often than
            `max_failures`; names the log.
    """
    fields = _run_fields(context, stage, data, inputs)
    name = row_id(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode())
    job = Job(str(context.store.root), context.recipe, stage, name, tuple(data), part)
    kept_result = _kept_result(job, outputs)
    if kept_result is not None:
        return kept_result
    # Ray Train would wait forever for workers that no node can hold.
    check_capacity([of_workers(context.recipe.training(stage), stage)])
    # Those of another run must not pass for this one's.
    for output in outputs:
        context.store.remove(output)
    _begin_run(context, job, fields)
    ended: Future[None] = Future()
    # In the main thread, Ray Train would take over Ctrl-C for the rest of the process.
    thread = Thread(
        target=_fit_trainer, args=(job, train_on_worker, ended), daemon=True
    )
    thread.start()
    _watch(context, job, ended)
    result = context.store.read_json(f"{job.folder}/{RESULT}")
    # Errors that no retry can help come as results: for one that a worker raises, Ray
    # Train would start all workers again.
    if "error" in result:
        kind = RecipeError if result["recipe"] else BezoarError
        raise kind(result["error"])
    for other in _runs(job) - {job.name}:
        _remove(job, {other, f"{other}.json"})
    record = {**fields, _ENDED: True}
    if outputs:
        record[_KEPT_RESULT] = result
    context.store.replace_json(f"{job.folder}/{job.name}.json", record)
    return result


def _kept_result(job: Job, outputs: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the metrics of a part that has ended and whose outputs are there."""
    store = job.store
    if not outputs or not all(store.exists(output) for output in outputs):
        return None
    record = store.read_json(f"{job.folder}/{job.name}.json") or {}
    return record.get(_KEPT_RESULT)


def _run_fields(
    context: StageContext, stage: str, data: list[TokenizedDataset], inputs: list[str]
) -> dict[str, object]:
    """Return everything that a checkpoint depends on.

    Their hash names the run, so that a run with other values does not resume from it.
    """
    recipe = context.recipe
    section = recipe.training(stage)
    fields = dict(section.fingerprint_fields())
    if section.zero_stage:
        # Each worker keeps a shard of the checkpoint.
        fields["zero_stage"] = section.zero_stage
        fields["workers"] = section.workers
    for name, value in recipe.base.fingerprint_fields().items():
        fields[f"base.{name}"] = value
    fields["seed"] = recipe.seed
    # Each file's name has the fingerprint of its rows.
    fields["rows"] = [dataset.file for dataset in data]
    fields[_INPUTS] = context.store.digest(*inputs)
    return fields


def _begin_run(context: StageContext, job: Job, fields: dict[str, object]) -> None:
    """Remove the progress of the last attempt and record a new run.

    If another run has not ended, say how it differs.
    """
    runs = _runs(job)
    records = {f"{run}.json" for run in runs}
    # The last attempt's `stop` among them, at which the workers would stop at once.
    _remove(job, _names(job) - runs - records)
    if job.name in runs:
        return
    for run in runs:
        record = context.store.read_json(f"{job.folder}/{run}.json")
        if _ENDED not in record:
            message = _explain_restart(job, record, fields)
            context.progress.say(f"warning: {message}")
    context.store.replace_json(f"{job.folder}/{job.name}.json", fields)


def _explain_restart(
    job: Job, before: dict[str, object], now: dict[str, object]
) -> str:
    differences = []
    for name in {**before, **now}:
        old = before.get(name)
        new = now.get(name)
        if old == new:
            continue
        if name == _INPUTS or isinstance(old, dict | list):
            differences.append(name)
        else:
            differences.append(f"{name} was {old}, is {new}")
    return (
        f"{job.stage} trains afresh. An unfinished training differs: "
        f"{', '.join(differences)}. Its last checkpoint is kept until this one ends. "
        "To resume it, restore the old recipe and data"
    )


def _runs(job: Job) -> set[str]:
    """Return the stage's runs: each has a folder and a record beside it."""
    names = _names(job)
    return {name for name in names if f"{name}.json" in names}


def _names(job: Job) -> set[str]:
    """Return the names of the files and folders in the stage's folder."""
    names = set()
    for file in job.store.list(job.folder):
        names.add(file.removeprefix(f"{job.folder}/").split("/")[0])
    return names


def _remove(job: Job, names: set[str]) -> None:
    for name in names:
        job.store.remove(f"{job.folder}/{name}")


def _fit_trainer(
    job: Job, train_on_worker: TrainOnWorker, ended: "Future[None]"
) -> None:
    try:
        build_trainer(job, train_on_worker).fit()
        ended.set_result(None)
    except Exception as error:
        ended.set_exception(error)


def build_trainer(job: Job, train_on_worker: TrainOnWorker) -> "TorchTrainer":
    """Build Ray Train's `TorchTrainer` with the workers that the recipe requests."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    section = job.section
    use_gpu = section.gpus_per_worker > 0
    resources = {"CPU": section.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = section.gpus_per_worker
    return TorchTrainer(
        _run_on_worker,
        train_loop_config={"job": job, "train_on_worker": train_on_worker},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=section.workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            # Ray Train V2 has label_selector; the types are those of V1.
            **section.placement,  # type: ignore[misc]
        ),
        # With the name and storage path of an earlier run, Ray Train resumes that run.
        run_config=RunConfig(
            name=job.name,
            storage_path=f"{job.store.root}/{job.folder}",
            failure_config=FailureConfig(max_failures=section.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def _run_on_worker(config: dict[str, Any]) -> None:
    """Train on a worker: output goes to the stage's log, rank 0's result to a file."""
    from ray.train import get_context

    from bezoar_ray.runtime.logs import keep_events, redirect
    from bezoar_ray.runtime.metrics import hold_gpus

    job: Job = config["job"]
    # The sizes of passes vary, which would fragment the GPU's memory.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    redirect(job.store.log(f"{job.stage}.log"))
    rank = get_context().get_world_rank()
    keep_events(job.store, stage=job.stage, rank=str(rank))
    hold_gpus(job.store.name, job.stage)
    _check_run_directory(job)
    try:
        result = config["train_on_worker"](job)
    except BezoarError as error:  # a retry would fail in the same way
        result = {"error": str(error), "recipe": isinstance(error, RecipeError)}
    if rank == 0:
        job.store.replace_json(f"{job.folder}/{RESULT}", result)


def _check_run_directory(job: Job) -> None:
    """Check that this node sees the run directory.

    It may have joined the cluster after the check at the start of the run.
    """
    if not job.store.exists(f"{job.folder}/{job.name}.json"):
        raise RecipeError(unseen(job.root, f"where {job.stage} is to be trained"))


def _watch(context: StageContext, job: Job, ended: "Future[None]") -> None:
    """Show the progress of the workers until they end."""
    shown: set[str] = set()
    try:
        while True:
            try:
                ended.result(timeout=POLL_SECONDS)
                return _show_progress(context, job, shown)
            except StillRunning:
                _show_progress(context, job, shown)
    except KeyboardInterrupt:  # it may come at any of these lines
        _stop(context, job, ended)
        raise
    except Exception as error:
        log = context.store.where(f"{job.stage}.log")
        raise BezoarError(
            f"{job.stage}: training failed: {_last_line(error)}. More in {log}"
        ) from error


def _show_progress(context: StageContext, job: Job, shown: set[str]) -> None:
    """Show the progress of rank 0, and each of its messages once."""
    # The workers may not be affected by an outage of the bucket, so it ends nothing.
    with contextlib.suppress(BezoarError):
        progress = context.store.read_json(f"{job.folder}/{PROGRESS}")
        if not progress:
            return
        context.progress.update(progress["step"], progress["total"], progress["note"])
        for message in progress["say"]:
            if message not in shown:
                shown.add(message)
                context.progress.say(message)


def _stop(context: StageContext, job: Job, ended: "Future[None]") -> None:
    """Have the workers write a last checkpoint, from which the next command resumes."""
    context.progress.say("stopping: the workers write a last checkpoint")
    context.store.replace(f"{job.folder}/{STOP}", b"")
    # Whatever fails now, the last complete checkpoint counts.
    with contextlib.suppress(Exception):
        ended.result(timeout=_STOP_SECONDS)


def _last_line(error: Exception) -> str:
    """Return the last line of the worker's error, without Ray's frame around it."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    first_failure = next(iter(failures.values()))
    lines = str(first_failure).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
