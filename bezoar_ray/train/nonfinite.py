"""Stops training when a loss or its gradient is NaN or infinite.

The error names the step and its rows. The last checkpoint is kept.
"""

import math
from typing import TYPE_CHECKING, Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.tokenized_dataset import TokenizedDataset

if TYPE_CHECKING:
    import torch
    from transformers import (
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

    from bezoar_ray.train.passes import PassesTrainer

_SHOWN = 8  # rows that the error names


class Finiteness:
    """Whether the losses and the gradient of the current step are finite.

    They are read once per step, since each read makes the CPU wait for the GPU.
    """

    def __init__(self) -> None:
        self._losses: list[tuple[torch.Tensor, list[str]]] = []
        self._gradient: torch.Tensor | float | None = None

    def add_loss(self, loss: "torch.Tensor", ids: list[str]) -> None:
        """Note the loss of a pass and the ids of its rows."""
        self._losses.append((loss.detach(), ids))

    def set_gradient(self, norm: "torch.Tensor | float | None") -> None:
        """Note the norm of the step's gradient, a number or a tensor of one."""
        self._gradient = norm

    def broken_rows(self) -> list[str]:
        """Return the rows of the passes whose loss is not finite, and begin a new step.

        If only the gradient is not finite, all rows of the step are returned.
        """
        losses = self._losses
        gradient = self._gradient
        self._losses = []
        self._gradient = None
        broken = []
        for loss, ids in losses:
            if not math.isfinite(loss):
                broken += ids
        if broken or gradient is None or math.isfinite(gradient):
            return broken
        return [id for _, ids in losses for id in ids]


def stop_if_not_finite(
    trainer: "PassesTrainer", job: Job, data: TokenizedDataset, steps_before: int
) -> "TrainerCallback":
    """Build a callback that ends training before an optimizer step that is not finite.

    transformers would leave such a loss out of its log and continue with NaN weights.

    Args:
        trainer: has the `finiteness` of its steps.
        job: names the stage.
        data: the data set that is trained on.
        steps_before: optimizer steps of the stage before this data set.
    """
    from transformers import TrainerCallback

    class StopIfNotFinite(TrainerCallback):
        """Stops all workers together, since the others would wait for one forever."""

        def on_pre_optimizer_step(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            broken = trainer.finiteness.broken_rows()
            step = steps_before + state.global_step + 1
            raise_if_not_finite(job, data.name, step, broken, args.device)

    return StopIfNotFinite()


def raise_if_not_finite(
    job: Job, dataset: str, step: int, broken: list[str], device: "torch.device"
) -> None:
    """End the training of all workers if one of them has rows that are not finite.

    Args:
        job: names the stage.
        dataset: name of the data set.
        step: number of the step.
        broken: ids of this worker's rows whose loss or gradient is NaN or infinite.
        device: of this worker.

    Raises:
        BezoarError: names the step and the rows.
    """
    if not _on_any_worker(bool(broken), device):
        return
    rows = [id for id in _gather_rows(broken) if id]  # repeats have no id
    names = ", ".join(rows[:_SHOWN])
    if len(rows) > _SHOWN:
        names += f" and {len(rows) - _SHOWN} more"
    raise BezoarError(
        f"{job.stage}: loss or gradient is NaN or inf at step {step}, in rows "
        f"{names} of {dataset}. The last checkpoint is kept. Check these "
        f"rows, or lower learning_rate (now {job.section.learning_rate:g})"
    )


def _on_any_worker(here: bool, device: "torch.device") -> bool:
    """Whether a condition holds on any worker."""
    import torch

    if not torch.distributed.is_initialized():
        return here
    flag = torch.tensor(float(here), device=device)
    torch.distributed.all_reduce(flag)
    return bool(flag.item())


def _gather_rows(rows: list[str]) -> list[str]:
    """Return the rows of all workers."""
    import torch

    if not torch.distributed.is_initialized():
        return rows
    by_worker: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(by_worker, rows)
    return [row for worker_rows in by_worker for row in worker_rows]
