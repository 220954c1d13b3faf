"""What a trainer tells Ray Train and the driver: checkpoints to go on from, losses, progress."""

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
_LOOK_SECONDS = 1.0
_WIRE_SECONDS, _WIRE_SECONDS_REMOTE = 0.5, 2.0


@dataclass
class TrainState:
    """What the loop has done so far; it lies in every checkpoint."""

    dataset_index: int = 0  # the data set that is trained on
    finished: bool = False  # whether that one is at its end
    stopped: bool = False  # whether the driver asked to stop
    offset: int = 0  # optimiser steps of those before it
    global_step: int = 0  # optimiser steps over all data sets, when it was last saved
    tokens: float = 0.0
    seconds: float = 0.0
    phases: dict[str, float] = field(
        default_factory=dict
    )  # seconds of data, passes, optimiser and checkpoints
    passes: dict[str, Any] = field(
        default_factory=dict
    )  # how they are made (fitting.Passes)
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: bytes) -> "TrainState":
        """The state that a checkpoint holds; earlier versions called two fields otherwise."""
        former = {"step": "dataset_index", "at": "global_step"}
        return cls(
            **{
                former.get(name, name): value
                for name, value in orjson.loads(text).items()
            }
        )

    @property
    def tokens_per_s(self) -> float:
        """Tokens that went through the model, padding left out, in a second of training."""
        return round(self.tokens / self.seconds, 1) if self.seconds else 0.0

    @property
    def time_shares(self) -> dict[str, float]:
        """The share of the time that went into data, passes (forward and backward), optimiser and checkpoints."""
        whole = sum(self.phases.values())
        return (
            {phase: round(seconds / whole, 4) for phase, seconds in self.phases.items()}
            if whole
            else {}
        )


class Wire:
    """Rank 0's line to the driver, in a thread of its own: no step waits for a bucket, and no outage of one ends it."""

    def __init__(self, job: Job):
        self._job, self._over = job, threading.Event()
        self.progress: dict[str, Any] | None = None
        self.stop = False
        """Whether the driver asks to stop."""

    def open(self) -> None:
        """Begin to write the latest progress, and to look for the driver's wish, now and then."""
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """End that, after a last time."""
        self._over.set()

    def _run(self) -> None:
        store, told, over = self._job.store, None, False
        while not over:
            over = self._over.wait(
                _WIRE_SECONDS_REMOTE if store.remote else _WIRE_SECONDS
            )
            with contextlib.suppress(BezoarError, OSError):
                if told is not self.progress:
                    told = self.progress
                    store.replace_json(f"{self._job.folder}/{PROGRESS}", told)
                self.stop = self.stop or store.exists(f"{self._job.folder}/{STOP}")


def reporter(
    job: Job,
    train_state: TrainState,
    data: TokenizedDataset,
    total: int,
    passes: Passes,
) -> "TrainerCallback":
    """A callback that keeps the state, and reports each checkpoint from rank 0 alone. It is the last one.

    Ray's own callback copies the whole checkpoint from every rank.
    """
    from ray.train import get_context, get_preemption_info
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        """One data set's training."""

        def __init__(self) -> None:
            self._seen = self._looked = self._phase_began = 0.0
            self._stop = self._noticed = False
            self._wire = Wire(job)

        def on_train_begin(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            train_state.passes = asdict(passes)
            self._seen = self._phase_began = time.monotonic()
            if state.is_world_process_zero:
                self._wire.open()

        def on_train_end(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            self._wire.close()

        def _end_phase(self, name: str) -> None:
            now = time.monotonic()
            train_state.phases[name] = (
                train_state.phases.get(name, 0.0) + now - self._phase_began
            )
            self._phase_began = now

        def on_step_begin(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            self._end_phase("data")

        def on_pre_optimizer_step(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            self._end_phase(
                "passes"
            )  # the GPU is done: the gradient's norm was looked at

        def on_step_end(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            self._end_phase("optimiser")
            now = time.monotonic()
            train_state.seconds, self._seen = (
                train_state.seconds + now - self._seen,
                now,
            )
            train_state.tokens += data.tokens * args.num_train_epochs / state.max_steps
            stop, notice = self._told(now)
            if stop:
                control.should_save = control.should_training_stop = (
                    train_state.stopped
                ) = True
            elif notice and not self._noticed:
                control.should_save = self._noticed = True
            last = train_state.history[-1] if train_state.history else {}
            loss = f"loss {last['loss']:.3f}, " if last else ""
            self._wire.progress = {
                "step": train_state.offset + state.global_step,
                "total": total,
                "note": f"{data.name}  {loss}{train_state.tokens_per_s:.0f} tokens/s",
                "accuracy": last.get("reward_accuracy"),
                "say": train_state.passes["because"],
            }

        def _told(self, now: float) -> tuple[bool, bool]:
            """Whether the driver is being stopped, and whether a worker's node is about to be taken away (on SIGTERM,
            Ray drains a node for half a minute): rank 0 looks now and then, all ranks learn it at the same step."""
            import torch
            import torch.distributed as dist

            looks = (
                get_context().get_world_rank() == 0
                and now - self._looked > _LOOK_SECONDS
            )
            if looks:
                self._looked, self._stop = now, self._wire.stop
            if dist.is_initialized():
                told = torch.tensor(
                    [looks, self._stop], dtype=torch.int, device=device(job)
                )
                dist.broadcast(told, 0)
                looks, self._stop = map(bool, told.tolist())
            return self._stop, looks and get_preemption_info() is not None

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
            if "rewards/accuracies" in logs:
                point["reward_accuracy"] = logs["rewards/accuracies"]
            train_state.history.append(point)

        def on_save(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            train_state.global_step, train_state.finished = (
                train_state.offset + state.global_step,
                state.global_step >= state.max_steps,
            )
            _report(
                job,
                folder,
                train_state,
                state.is_world_process_zero,
                urgent=self._stop or self._noticed,
            )
            self._end_phase("checkpoints")

    return Reporter()


def _report(
    job: Job, folder: Path, train_state: TrainState, main: bool, urgent: bool
) -> None:
    """Hand a saved folder to Ray Train once all ranks have written their share of it; with a bucket, each node's.

    It is copied while training goes on, and then removed; where this process is about to end, before it does.
    """
    import torch.distributed
    from ray.train import Checkpoint, CheckpointUploadMode, get_context, report

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if main:
        (folder / STATE).write_bytes(orjson.dumps(asdict(train_state)))
    keeps = get_context().get_local_rank() == 0 if job.store.remote else main
    report(
        {"step": train_state.global_step},
        checkpoint=Checkpoint.from_directory(str(folder)) if keeps else None,
        checkpoint_upload_mode=CheckpointUploadMode.SYNC
        if urgent
        else CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )
