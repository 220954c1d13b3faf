"""A trainer's reports to Ray Train and to the driver: checkpoints, losses, progress."""

import contextlib
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from bezoar_ray.errors import BezoarError
from bezoar_ray.train.fitting import Passes
from bezoar_ray.train.launcher import PROGRESS, STOP, Job
from bezoar_ray.train.model_loading import device
from bezoar_ray.train.tokenized_dataset import TokenizedDataset

if TYPE_CHECKING:
    from transformers import (
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

STATE = "bezoar.json"
"""The file with the `TrainState` in a checkpoint's folder."""
_LOGGED = {
    "rewards/accuracies": "reward_accuracy",
    "distance": "distance",
    "effective_samples": "effective_samples",
}
"""Metrics of trainers that are kept, with their names in the history."""
_STOP_CHECK_SECONDS = 1.0
_EXCHANGE_SECONDS = 0.5
_EXCHANGE_SECONDS_REMOTE = 2.0  # with a bucket


@dataclass
class TrainState:
    """What the loop has done so far; every checkpoint holds it."""

    dataset_index: int = 0
    """The data set that is trained on."""
    finished: bool = False
    """Whether the training on that data set is complete."""
    stopped: bool = False
    """Whether the driver asked to stop."""
    offset: int = 0
    """Optimizer steps on the data sets before it."""
    global_step: int = 0
    """Optimizer steps over all data sets at the last save."""
    tokens: float = 0.0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of data, passes, optimizer and checkpoints."""
    passes: dict[str, Any] = field(default_factory=dict)
    """How passes are made: the fields of `fitting.Passes`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A point for each logged step: its loss, and what else its trainer logs."""
    looks: list[dict[str, Any]] = field(default_factory=list)
    """Answers to held-out prompts at some steps, with their metrics."""

    @classmethod
    def from_json(cls, text: bytes) -> "TrainState":
        """Read a checkpoint's state; earlier versions named two fields differently."""
        former_names = {"step": "dataset_index", "at": "global_step"}
        fields = {}
        for name, value in orjson.loads(text).items():
            fields[former_names.get(name, name)] = value
        return cls(**fields)

    @property
    def tokens_per_s(self) -> float:
        """Tokens through the model per second of training, without padding."""
        if not self.seconds:
            return 0.0
        return round(self.tokens / self.seconds, 1)

    @property
    def time_shares(self) -> dict[str, float]:
        """Shares of the time of data, passes, optimizer and checkpoints.

        Passes are the forward and backward passes.
        """
        total = sum(self.phases.values())
        if not total:
            return {}
        return {
            phase: round(seconds / total, 4) for phase, seconds in self.phases.items()
        }


class DriverLink:
    """Rank 0's exchange with the driver through files of the run directory.

    It runs in its own thread, so that no step waits for a bucket and an outage of the
    bucket does not end the training.
    """

    def __init__(self, job: Job):
        self._job = job
        self._closed = threading.Event()
        self.progress: dict[str, Any] | None = None
        """The latest progress, to be written."""
        self.stop = False
        """Whether the driver asks to stop."""

    def open(self) -> None:
        """Start to write the latest progress and to look for a stop at intervals."""
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Stop after one last exchange."""
        self._closed.set()

    def _run(self) -> None:
        store = self._job.store
        interval = _EXCHANGE_SECONDS_REMOTE if store.remote else _EXCHANGE_SECONDS
        written = None
        closed = False
        while not closed:
            closed = self._closed.wait(interval)
            with contextlib.suppress(BezoarError, OSError):
                if written is not self.progress:
                    written = self.progress
                    store.replace_json(f"{self._job.folder}/{PROGRESS}", written)
                self.stop = self.stop or store.exists(f"{self._job.folder}/{STOP}")


class PhaseClock:
    """Adds up the seconds of each phase of a training in its state."""

    def __init__(self, train_state: TrainState):
        self._state = train_state
        self._begin = time.monotonic()

    def restart(self) -> None:
        """Begin the first phase now."""
        self._begin = time.monotonic()

    def end(self, phase: str) -> None:
        """End a phase; the next one begins."""
        now = time.monotonic()
        before = self._state.phases.get(phase, 0.0)
        self._state.phases[phase] = before + now - self._begin
        self._begin = now


class StopCheck:
    """Whether the driver asks to stop, or a node is preempted.

    On SIGTERM, Ray drains a worker's node for half a minute. Rank 0 checks at
    intervals, and all ranks learn the result at the same step.
    """

    def __init__(self, job: Job, driver: DriverLink):
        self._job = job
        self._driver = driver
        self._last_check = 0.0
        self.stop = False
        """Whether the driver asks to stop."""
        self.preempted = False
        """Whether a node was preempted at any time."""

    @property
    def is_urgent(self) -> bool:
        """Whether the process is about to end."""
        return self.stop or self.preempted

    def check(self) -> bool:
        """Check at the end of a step; all ranks call it.

        Returns:
            Whether a checkpoint has to be saved now. Of a preempted node, this is true
            once, as the half minute is too short to save after every step.
        """
        import torch
        import torch.distributed as dist
        from ray.train import get_context, get_preemption_info

        now = time.monotonic()
        is_due = now - self._last_check > _STOP_CHECK_SECONDS
        checks = get_context().get_world_rank() == 0 and is_due
        if checks:
            self._last_check = now
            self.stop = self._driver.stop
        if dist.is_initialized():
            flags = torch.tensor(
                [checks, self.stop], dtype=torch.int, device=device(self._job)
            )
            dist.broadcast(flags, 0)
            checks, self.stop = map(bool, flags.tolist())
        preempted = checks and get_preemption_info() is not None
        is_new = preempted and not self.preempted
        if self.stop:
            return True
        self.preempted = self.preempted or is_new
        return is_new


def reporter(
    job: Job,
    train_state: TrainState,
    data: TokenizedDataset,
    total: int,
    passes: Passes,
) -> "TrainerCallback":
    """Build the callback that keeps the state and reports checkpoints and progress.

    It must be the trainer's last callback. Ray's own callback is not used, as it copies
    the whole checkpoint from every rank.

    Args:
        job: the stage's job.
        train_state: the callback updates it.
        data: the data set that is trained on.
        total: optimizer steps of the whole stage.
        passes: how the passes are made.
    """
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        """Reports the training on one data set."""

        def __init__(self) -> None:
            self._step_end = 0.0
            self._clock = PhaseClock(train_state)
            self._driver = DriverLink(job)
            self._stop_check = StopCheck(job, self._driver)

        def on_train_begin(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            train_state.passes = asdict(passes)
            self._step_end = time.monotonic()
            self._clock.restart()
            if state.is_world_process_zero:
                self._driver.open()

        def on_train_end(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            self._driver.close()

        def on_step_begin(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            self._clock.end("data")

        def on_pre_optimizer_step(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            # The GPU has finished its passes: the norm of the gradient was read.
            self._clock.end("passes")

        def on_step_end(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            self._clock.end("optimiser")  # a key of summary.json
            now = time.monotonic()
            train_state.seconds += now - self._step_end
            self._step_end = now
            train_state.tokens += data.tokens * args.num_train_epochs / state.max_steps
            if self._stop_check.check():
                control.should_save = True
            if self._stop_check.stop:
                train_state.stopped = True
                # transformers saves after this step, and only then leaves its loop.
                control.should_training_stop = True
            self._driver.progress = self._progress(state.global_step)

        def _progress(self, step: int) -> dict[str, Any]:
            last_point = train_state.history[-1] if train_state.history else {}
            loss = f"loss {last_point['loss']:.3f}, " if last_point else ""
            speed = f"{train_state.tokens_per_s:.0f} tokens/s"
            return {
                "step": train_state.offset + step,
                "total": total,
                "note": f"{data.name}  {loss}{speed}",
                "accuracy": last_point.get("reward_accuracy"),
                "say": train_state.passes["because"],
            }

        def on_log(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            logs: dict[str, float] | None = None,
            **kwargs: object,
        ) -> None:
            if not logs or "loss" not in logs:
                return
            point = {
                "step": train_state.offset + state.global_step,
                "loss": logs["loss"],
                "dataset": data.name,
            }
            for name, key in _LOGGED.items():
                if name in logs:
                    point[key] = logs[name]
            train_state.history.append(point)

        def on_save(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            train_state.global_step = train_state.offset + state.global_step
            train_state.finished = state.global_step >= state.max_steps
            report_checkpoint(
                job,
                Path(args.output_dir) / f"checkpoint-{state.global_step}",
                train_state,
                is_main=state.is_world_process_zero,
                urgent=self._stop_check.is_urgent,
            )
            self._clock.end("checkpoints")

    return Reporter()


def report_checkpoint(
    job: Job, folder: Path, train_state: TrainState, is_main: bool, urgent: bool
) -> None:
    """Give a saved folder to Ray Train once all ranks have written their shares of it.

    Ray Train copies it while training continues and then removes it. If the process is
    about to end (`urgent`), the copy is made before this returns.
    """
    import torch.distributed
    from ray.train import Checkpoint, CheckpointUploadMode, get_context, report

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if is_main:
        (folder / STATE).write_bytes(orjson.dumps(asdict(train_state)))
    # With a bucket, each node has a folder of its own on its disk.
    is_reporting = is_main
    if job.store.remote:
        is_reporting = get_context().get_local_rank() == 0
    checkpoint = Checkpoint.from_directory(str(folder)) if is_reporting else None
    upload_mode = CheckpointUploadMode.SYNC if urgent else CheckpointUploadMode.ASYNC
    # `report` is a barrier, so all ranks call it.
    report(
        {"step": train_state.global_step},
        checkpoint=checkpoint,
        checkpoint_upload_mode=upload_mode,
        delete_local_checkpoint_after_upload=True,
    )
