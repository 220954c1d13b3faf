"""Optimiser steps in passes: a worker gets all its rows of a step, and computes as many at a time as are good for it.

What a step learns does not depend on its passes. A loss that is a mean over tokens is divided by the tokens of the
whole step (TRL's SFTTrainer does, where it is told their number); a mean over rows is weighted by the rows of the pass.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bezoar_ray.train.nonfinite import Finiteness
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.pass_size import PassSize
from bezoar_ray.train.sampler import RowsOrRepeats, StepSampler

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainerCallback

_PREFETCHED = 2  # steps that a GPU's loader holds ready


@dataclass(frozen=True)
class Row:
    """What a row takes in a pass: its tokens, its sequences (two of a pair), and the tokens of the longest of them."""

    tokens: int
    sequences: int
    longest: int


def split(rows: list[Row], size: PassSize, layout: Layout) -> list[list[int]]:
    """The passes of a step: indices of its rows on this worker, in as few passes as hold them."""
    for count in range(_fewest(rows, size), len(rows)):
        passes = deal(rows, count, layout)
        if all(_fits(rows, indices, size, layout) for indices in passes):
            return passes
    return deal(rows, len(rows), layout)


def deal(rows: list[Row], count: int, layout: Layout) -> list[list[int]]:
    """So many passes of about equal work: indices of rows, each in one of them.

    How many rows a pass has follows from the number of rows and of passes alone, so that it is the same on all workers.
    Flat, the longest rows are dealt out first, to and fro, for equal tokens. Padded, rows lie beside rows of their
    length, so that little padding is needed.
    """
    by_length = sorted(
        range(len(rows)),
        key=lambda index: (-rows[index].longest, -rows[index].tokens, index),
    )
    if not layout.flat:
        bounds = [round(part * len(rows) / max(1, count)) for part in range(count + 1)]
        return [by_length[begin:end] for begin, end in itertools.pairwise(bounds)]
    passes: list[list[int]] = [[] for _ in range(count)]
    for place, index in enumerate(by_length):
        turn, at = divmod(place, count)
        passes[at if turn % 2 == 0 else count - 1 - at].append(index)
    return [sorted(indices) for indices in passes]


def _fewest(rows: list[Row], size: PassSize) -> int:
    if size.rows:
        return math.ceil(len(rows) / size.rows)
    return math.ceil(sum(row.tokens for row in rows) / (size.tokens or 1))


def _fits(rows: list[Row], indices: list[int], size: PassSize, layout: Layout) -> bool:
    if size.rows:
        return len(indices) <= size.rows
    return len(indices) == 1 or work([rows[index] for index in indices], layout) <= (
        size.tokens or 0
    )


def work(rows: list[Row], layout: Layout) -> int:
    """Tokens that a pass of these rows computes, padding included."""
    if layout.flat:
        return sum(row.tokens for row in rows)
    return sum(row.sequences for row in rows) * max(row.longest for row in rows)


class StepCollator:
    """The rows of a step as one padded batch of TRL's, with their `rows` (of type `Row`) and `ids` beside the tensors.

    Where a row is several examples, the first ones of all rows come first.
    """

    def __init__(
        self,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        measure: Callable[..., Row],
    ):
        self._collate, self._measure = collate, measure

    def __call__(self, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
        examples = [example for block in zip(*rows, strict=True) for example in block]
        batch = dict(self._collate(examples))
        ids = [row[0]["id"] for row in rows]
        return batch | {"rows": [self._measure(row) for row in rows], "ids": ids}


def take(
    batch: "dict[str, Tensor]", indices: list[int], total: int, longest: int
) -> "dict[str, Tensor]":
    """Some rows of a padded batch of `total` rows, without the padding that they do not need.

    A tensor has as many entries as there are rows, or twice as many: then all chosen sides come before the rejected.
    """
    taken = {}
    for name, tensor in batch.items():
        blocks = tensor.shape[0] // total
        places = [block * total + index for block in range(blocks) for index in indices]
        taken[name] = tensor[places]
        if tensor.dim() > 1:
            taken[name] = taken[name][:, :longest]
    return taken


class PassesTrainer(Protocol):
    """What is used of a trainer of `in_passes`, beside what transformers' own trainers do."""

    layout: Layout
    pass_size: PassSize
    measure: Callable[..., Row]
    batch: int
    width: int
    mean_over_rows: bool
    model_accepts_loss_kwargs: bool
    finiteness: Finiteness
    compute_loss_context_manager: Callable[
        [], contextlib.AbstractContextManager[object]
    ]

    def add_callback(self, callback: "TrainerCallback") -> None:
        """Have it called at each event of the training."""

    def train(self, resume_from_checkpoint: str | None = None) -> object:
        """Train to the end, from a checkpoint's folder where one is given."""


def in_passes(kind: "type[Trainer]") -> Callable[..., PassesTrainer]:
    """A trainer class of TRL's or transformers' whose optimiser steps are computed in passes.

    Set `layout`, `pass_size` and `measure` before training, and `width` where a row is several examples.
    """

    class InPasses(kind):
        """As its parent, but that its loader gives whole optimiser steps."""

        layout: Layout
        pass_size: PassSize
        measure: Callable[..., Row]
        batch: int
        width = 1
        mean_over_rows = True
        _weight = 1.0

        def __init__(self, *args: object, **more: object) -> None:
            self.finiteness = Finiteness()
            super().__init__(*args, **more)

        def get_train_dataloader(self) -> "DataLoader[list[dict[str, Any]]]":
            """One item for each optimiser step; accelerate does not deal out its rows once more."""
            from torch.utils.data import DataLoader

            rows, args = RowsOrRepeats(self.train_dataset, self.width), self.args
            sampler = StepSampler(
                len(rows),
                self.batch,
                args.process_index,
                args.world_size,
                args.seed,
                lambda: self.state.epoch or 0.0,
            )
            return DataLoader(
                rows,
                batch_sampler=sampler,
                collate_fn=StepCollator(self.data_collator, self.measure),
                num_workers=args.dataloader_num_workers,
                prefetch_factor=_PREFETCHED if args.dataloader_num_workers else None,
                pin_memory=args.dataloader_pin_memory,
            )

        def training_step(
            self,
            model: "PeftModel",
            inputs: dict[str, Any],
            num_items_in_batch: Any = None,
        ) -> "Tensor | float":
            """Forward and backward passes over the rows of a step; workers exchange gradients in the last one."""
            rows, ids = inputs.pop("rows"), inputs.pop("ids")
            passes, counted = self._passes(rows, ids)
            if (
                not self.mean_over_rows
            ):  # TRL adds a mixture's balancing loss in each pass, over this number
                self.current_gradient_accumulation_steps = len(passes)
            total: Tensor | float = 0.0
            for number, indices in enumerate(passes):
                part = take(
                    inputs,
                    indices,
                    len(rows),
                    max(rows[index].longest for index in indices),
                )
                named = [ids[index] for index in indices if ids[index]]
                self._weight = self._weight_of(named, counted)
                with self._exchanging(model, last=number == len(passes) - 1):
                    loss = super().training_step(model, part, num_items_in_batch)
                self.finiteness.add_loss(loss, named)
                total = total + loss
            return total

        def _passes(
            self, rows: list[Row], ids: list[str]
        ) -> tuple[list[list[int]], int]:
            """The passes of this worker, and the rows of the step on all workers.

            Workers make equally many passes of equally many rows, as they exchange sums and metrics in them. Where a
            worker repeats a row to that end, the repeat is a pass by itself that counts nothing, and every other worker
            has its last row there.
            """
            workers = self.args.world_size
            counted = sum(map(bool, ids))
            if workers == 1:
                return split(rows, self.pass_size, self.layout), counted
            counted = sum(self._on_all(counted))
            apart = [[len(rows) - 1]] if counted < len(rows) * workers else []
            together = rows[: len(rows) - len(apart)]
            passes = split(together, self.pass_size, self.layout)
            most = max(self._on_all(len(passes)))
            if most > len(passes):
                passes = deal(together, most, self.layout)
            return passes + apart, counted

        def _on_all(self, number: int) -> list[int]:
            """A number of each worker's."""
            import torch

            return self.accelerator.gather(
                torch.tensor([number], device=self.args.device)
            ).tolist()

        def _weight_of(self, ids: list[str], counted: int) -> float:
            """Of a pass with these rows in its step's loss, which workers average."""
            return (
                len(ids) / counted * self.args.world_size
                if self.mean_over_rows
                else 1.0
            )

        @contextlib.contextmanager
        def _exchanging(self, model: "PeftModel", last: bool) -> Iterator[None]:
            self.accelerator.gradient_state._set_sync_gradients(last)
            apart = not last and not self.is_deepspeed_enabled
            with self.accelerator.no_sync(model) if apart else contextlib.nullcontext():
                yield

        def compute_loss(
            self,
            model: "PeftModel",
            inputs: "dict[str, Tensor]",
            *args: object,
            **more: object,
        ) -> "Tensor":
            """The parent's loss, weighted as the pass is."""
            return super().compute_loss(model, inputs, *args, **more) * self._weight

        def _get_grad_norm(
            self, *args: object, **more: object
        ) -> "Tensor | float | None":
            norm = super()._get_grad_norm(*args, **more)
            self.finiteness.set_gradient(norm)
            return norm

    return InPasses
