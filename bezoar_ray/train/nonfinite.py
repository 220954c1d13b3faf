"""Training stops where a loss or its gradient is NaN or infinite. It names step and rows; the last checkpoint stays."""

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

_SHOWN = 8  # rows that are named


class Finiteness:
    """Whether the losses and the gradient of the current step are finite; it is looked at once a step, as a look makes
    the CPU wait for the GPU."""

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
        """The rows of the passes whose loss is not finite; all rows of the step where only the gradient is not. A new
        step begins."""
        losses, gradient = self._losses, self._gradient
        self._losses, self._gradient = [], None
        broken = [id for loss, ids in losses if not math.isfinite(loss) for id in ids]
        if broken or gradient is None or math.isfinite(gradient):
            return broken
        return [id for _, ids in losses for id in ids]


def stop_if_not_finite(
    trainer: "PassesTrainer", job: Job, data: TokenizedDataset, done: int
) -> "TrainerCallback":
    """A callback that ends training before an optimiser step on a loss or gradient that is not finite.

    transformers takes such a loss out of its log, and goes on with weights that are NaN.

    Args:
        trainer: has a `finiteness`.
        job: names the stage.
        data: the data set that is trained on.
        done: optimiser steps of the stage before this data set.
    """
    from transformers import TrainerCallback

    class StopIfNotFinite(TrainerCallback):
        """All workers stop together: one that waits for the others would wait for ever."""

        def on_pre_optimizer_step(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            broken = trainer.finiteness.broken_rows()
            if not _anywhere(bool(broken), args.device):
                return
            rows = [id for id in _gathered(broken) if id]
            named = ", ".join(rows[:_SHOWN]) + (
                f" and {len(rows) - _SHOWN} more" if rows[_SHOWN:] else ""
            )
            raise BezoarError(
                f"{job.stage}: the loss or its gradient is NaN or infinite in step {done + state.global_step + 1}, in "
                f"rows {named} of {data.name}. The last checkpoint before it is kept. Look at these rows, or lower "
                f"learning_rate (it is {job.part.learning_rate:g})"
            )

    return StopIfNotFinite()


def _anywhere(here: bool, device: "torch.device") -> bool:
    """Whether it is so on any worker."""
    import torch

    if not torch.distributed.is_initialized():
        return here
    flag = torch.tensor(float(here), device=device)
    torch.distributed.all_reduce(flag)
    return bool(flag.item())


def _gathered(rows: list[str]) -> list[str]:
    """The rows of all workers."""
    import torch

    if not torch.distributed.is_initialized():
        return rows
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, rows)
    return [row for part in found for row in part]
