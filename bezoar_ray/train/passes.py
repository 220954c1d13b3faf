"""Optimiser steps in passes: a worker gets all its rows of a step, and computes as many at a time as are good for it.

What a step learns does not depend on its passes. A loss that is a mean over tokens is divided by the tokens of the
whole step (TRL's SFTTrainer does, where it is told their number); a mean over rows is weighted by the rows of the pass.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bezoar_ray.train.data import IGNORED
from bezoar_ray.train.nonfinite import Finiteness
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.pass_size import PassSize
from bezoar_ray.train.sampler import RowsOrRepeats, StepSampler

_PREFETCHED = 2  # steps that a GPU's loader holds ready


@dataclass(frozen=True)
class Row:
    """What a row takes in a pass: its tokens, its sequences (two of a pair), and the tokens of the longest of them."""

    tokens: int
    sequences: int
    longest: int


def split(rows: list[Row], size: PassSize, layout: Layout, at_least: int = 1) -> list[list[int]]:
    """The passes of a step: indices of its rows, none of them twice, in passes of about equal work.

    Args:
        rows: of the step, on this worker.
        size: of a pass.
        layout: flat or padded.
        at_least: so many passes, as all workers have to make equally many. No more than there are rows.
    """
    by_length = sorted(range(len(rows)), key=lambda index: (-rows[index].longest, index))
    count = max(at_least, _fewest(rows, size, layout))
    while count < len(rows):
        passes = _even(rows, by_length, count) if layout.flat else _chunks(by_length, count)
        if all(_fits(rows, indices, size, layout) for indices in passes):
            return passes
        count += 1
    return [[index] for index in range(len(rows))]


def _fewest(rows: list[Row], size: PassSize, layout: Layout) -> int:
    if size.rows:
        return math.ceil(len(rows) / size.rows)
    return min(len(rows), math.ceil(sum(row.tokens for row in rows) / size.tokens))


def _fits(rows: list[Row], indices: list[int], size: PassSize, layout: Layout) -> bool:
    if size.rows:
        return len(indices) <= size.rows
    return len(indices) == 1 or work([rows[index] for index in indices], layout) <= size.tokens


def work(rows: list[Row], layout: Layout) -> int:
    """Tokens that a pass of these rows computes, padding included."""
    if layout.flat:
        return sum(row.tokens for row in rows)
    return sum(row.sequences for row in rows) * max(row.longest for row in rows)


def _even(rows: list[Row], by_length: list[int], count: int) -> list[list[int]]:
    """Passes of about equal numbers of tokens: the longest row first, each into the pass that has the fewest."""
    passes: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for index in by_length:
        emptiest = min(range(count), key=tokens.__getitem__)
        passes[emptiest].append(index)
        tokens[emptiest] += rows[index].tokens
    return [sorted(indices) for indices in passes]


def _chunks(by_length: list[int], count: int) -> list[list[int]]:
    """Passes of about equal numbers of rows, whose lengths are alike, so that little padding is needed."""
    bounds = [round(part * len(by_length) / count) for part in range(count + 1)]
    return [by_length[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]


class StepCollator:
    """The rows of a step as one padded batch of TRL's, with their `rows` (of type `Row`) and `ids` beside the tensors.

    Where a row is several examples, the first ones of all rows come first. A row without an id is a repeat, of which
    nothing may be learned.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], measure: Callable[..., Row]):
        self._collate, self._measure = collate, measure

    def __call__(self, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
        examples = [example for block in zip(*rows, strict=True) for example in block]
        batch = dict(self._collate(examples))
        ids = [row[0]["id"] for row in rows]
        if not any(ids) and "labels" in batch:  # they would count among the step's tokens
            batch["labels"].fill_(IGNORED)
        return batch | {"rows": [self._measure(row) for row in rows], "ids": ids}


def take(batch: dict[str, Any], indices: list[int], total: int, longest: int) -> dict[str, Any]:
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


def in_passes(kind: type) -> type:
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

        def __init__(self, *args: Any, **more: Any) -> None:
            self.finiteness = Finiteness()
            super().__init__(*args, **more)

        def get_train_dataloader(self) -> Any:
            """One item for each optimiser step; accelerate does not deal out its rows once more."""
            from torch.utils.data import DataLoader

            rows, args = RowsOrRepeats(self.train_dataset, self.width), self.args
            sampler = StepSampler(
                len(rows), self.batch, args.process_index, args.world_size, args.seed, lambda: self.state.epoch or 0.0
            )
            return DataLoader(
                rows,
                batch_sampler=sampler,
                collate_fn=StepCollator(self.data_collator, self.measure),
                num_workers=args.dataloader_num_workers,
                prefetch_factor=_PREFETCHED if args.dataloader_num_workers else None,
                pin_memory=args.dataloader_pin_memory,
            )

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            """Forward and backward passes over the rows of a step; workers exchange gradients in the last one."""
            rows, ids = inputs.pop("rows"), inputs.pop("ids")
            passes, counted = self._passes(rows, ids)
            total = 0.0
            for number, indices in enumerate(passes):
                last = number == len(passes) - 1
                part = take(inputs, indices, len(rows), max(rows[index].longest for index in indices))
                self._weight = self._weight_of([ids[index] for index in indices], counted)
                with self._exchanging(model, last):
                    loss = super().training_step(model, part, num_items_in_batch)
                self.finiteness.add_loss(loss, [ids[index] for index in indices])
                total = total + loss
            return total

        def _passes(self, rows: list[Row], ids: list[str]) -> tuple[list[list[int]], int]:
            """The passes of this worker, as many as every other's, and the rows of the step on all workers."""
            import torch

            passes = split(rows, self.pass_size, self.layout)
            counted = sum(bool(id) for id in ids)
            if self.args.world_size > 1:
                here = torch.tensor([[len(passes), counted]], device=self.args.device)
                everywhere = self.accelerator.gather(here)
                most, counted = everywhere[:, 0].max().item(), everywhere[:, 1].sum().item()
                passes = split(rows, self.pass_size, self.layout, at_least=most)
            return passes, counted

        def _weight_of(self, ids: list[str], counted: int) -> float:
            """Of a pass in its step's loss, which workers average."""
            real = sum(bool(id) for id in ids)
            if not self.mean_over_rows:
                return 1.0
            return real / counted * self.args.world_size

        @contextlib.contextmanager
        def _exchanging(self, model: Any, last: bool) -> Any:
            self.accelerator.gradient_state._set_sync_gradients(last)
            apart = not last and not self.is_deepspeed_enabled
            with self.accelerator.no_sync(model) if apart else contextlib.nullcontext():
                yield

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
            """The parent's loss, weighted as the pass is."""
            return super().compute_loss(model, inputs, *args, **more) * self._weight

        def _get_grad_norm(self, *args: Any, **more: Any) -> Any:
            norm = super()._get_grad_norm(*args, **more)
            self.finiteness.set_gradient(norm)
            return norm

    return InPasses
