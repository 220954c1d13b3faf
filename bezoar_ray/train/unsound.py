"""Training stops where a loss or its gradient is no number: step and rows are named, the last good checkpoint stays."""

import math
from collections.abc import Iterator
from typing import Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.train.prepared import Prepared
from bezoar_ray.train.worker import Job

_SHOWN = 8  # rows that are named


def watched(kind: type) -> type:
    """A trainer class whose objects keep the last pass with a loss or gradients that are no numbers, as `unsound` (its
    input ids)."""

    class Watched(kind):
        """As its parent."""

        unsound: Any = None

        def training_step(self, model: Any, inputs: Any, *more: Any) -> Any:
            self._ids = inputs["input_ids"]
            loss = super().training_step(model, inputs, *more)
            if not loss.isfinite():
                self.unsound = self._ids
            return loss

        def _get_grad_norm(self, *given: Any, **named: Any) -> Any:
            norm = super()._get_grad_norm(*given, **named)
            if norm is not None and not math.isfinite(norm):
                self.unsound = self._ids
            return norm

    return Watched


def stopping(trainer: Any, job: Job, data: Prepared, done: int) -> Any:
    """A callback for a watched trainer, before whose data set so many optimiser steps of the stage were done.

    transformers takes such a loss out of its log, and goes on with weights that are no numbers any more.
    """
    from transformers import TrainerCallback

    class Stopping(TrainerCallback):
        """All workers stop together: one that waits for the others would wait for ever."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not _anywhere(trainer.unsound is not None, args.device):
                return
            rows = _gathered(list(_rows(trainer.unsound, data, job)))
            named = ", ".join(rows[:_SHOWN]) + (f" and {len(rows) - _SHOWN} more" if rows[_SHOWN:] else "")
            raise BezoarError(
                f"{job.stage}: the loss or its gradient is no number in step {done + state.global_step + 1}, in rows "
                f"{named} of {data.name}. The last checkpoint before it is kept. Look at these rows, or lower "
                f"learning_rate (it is {job.part.learning_rate:g})"
            )

    return Stopping()


def _anywhere(here: bool, device: Any) -> bool:
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


def _rows(ids: Any, data: Prepared, job: Job) -> Iterator[str]:
    """The rows whose tokens are in a pass, padded or side by side."""
    passed = [] if ids is None else [_spelled(sequence) for sequence in ids.tolist()]
    for row in data.open(job.store) if passed else ():
        tokens = _spelled(row["input_ids"] if "input_ids" in row else row["prompt_ids"] + row["chosen_ids"])
        if any(tokens in sequence for sequence in passed):
            yield row["id"]


def _spelled(tokens: list[int]) -> str:
    return f" {' '.join(map(str, tokens))} "
