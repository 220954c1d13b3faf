"""Optimizer steps in passes.

A worker receives all its rows of a step and computes them in passes of a suitable size.
The result of a step does not depend on its passes: a loss that is a mean over tokens is
divided by the tokens of the whole step (TRL's SFTTrainer does so when it is told their
number), and a loss that is a mean over rows is weighted by the rows of the pass.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
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

_SCORING_PASS = PassSize(tokens=8_192)  # without gradients a pass takes little memory
_PREFETCHED = 2  # steps that a GPU's data loader prepares ahead


@dataclass(frozen=True)
class Row:
    """The size of a row in a pass."""

    tokens: int
    sequences: int
    """One, or two for a pair."""
    longest: int
    """Tokens of its longest sequence."""


def split(rows: list[Row], size: PassSize, layout: Layout) -> list[list[int]]:
    """Split a worker's rows of a step into as few passes of a size as possible.

    Returns:
        The indices of the rows of each pass.
    """
    for count in range(_fewest(rows, size), len(rows)):
        passes = deal(rows, count, layout)
        if all(_fits(rows, indices, size, layout) for indices in passes):
            return passes
    return deal(rows, len(rows), layout)


def split_for_scoring(lengths: Iterable[int], layout: Layout) -> list[list[int]]:
    """Split sequences of these tokens into passes without gradients.

    Returns:
        The indices of the sequences of each pass.
    """
    rows = [Row(tokens=tokens, sequences=1, longest=tokens) for tokens in lengths]
    return split(rows, _SCORING_PASS, layout)


def deal(rows: list[Row], count: int, layout: Layout) -> list[list[int]]:
    """Deal the rows out to `count` passes of about equal work.

    The number of rows in each pass depends only on the numbers of rows and passes, so
    it is the same on all workers. Flat, the longest rows are dealt out first, to and
    fro, so that passes have about equal tokens. Padded, rows of similar length share a
    pass, so that little padding is needed.

    Returns:
        The indices of the rows of each pass.
    """

    def longest_first(index: int) -> tuple[int, int, int]:
        row = rows[index]
        return -row.longest, -row.tokens, index

    by_length = sorted(range(len(rows)), key=longest_first)
    if not layout.flat:
        bounds = [round(part * len(rows) / max(1, count)) for part in range(count + 1)]
        return [by_length[begin:end] for begin, end in itertools.pairwise(bounds)]
    passes: list[list[int]] = [[] for _ in range(count)]
    for position, index in enumerate(by_length):
        turn, seat = divmod(position, count)
        if turn % 2 == 1:  # back again
            seat = count - 1 - seat
        passes[seat].append(index)
    return [sorted(indices) for indices in passes]


def _fewest(rows: list[Row], size: PassSize) -> int:
    """Return a lower bound of the number of passes."""
    if size.rows:
        return math.ceil(len(rows) / size.rows)
    tokens = sum(row.tokens for row in rows)
    return math.ceil(tokens / (size.tokens or 1))


def _fits(rows: list[Row], indices: list[int], size: PassSize, layout: Layout) -> bool:
    if size.rows:
        return len(indices) <= size.rows
    if len(indices) == 1:  # a row that is longer than a pass is one by itself
        return True
    return work([rows[index] for index in indices], layout) <= (size.tokens or 0)


def work(rows: list[Row], layout: Layout) -> int:
    """Return the tokens that a pass of these rows computes, padding included."""
    if layout.flat:
        return sum(row.tokens for row in rows)
    longest = max(row.longest for row in rows)
    return sum(row.sequences for row in rows) * longest


class StepCollator:
    """Collates the rows of a step into one padded batch of TRL's.

    The batch also has the sizes of its `rows` (of type `Row`) and their `ids`. If a row
    consists of several examples, the first examples of all rows come first.
    """

    def __init__(
        self,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        measure: Callable[..., Row],
    ):
        self._collate = collate
        self._measure = measure

    def __call__(self, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
        examples = [example for block in zip(*rows, strict=True) for example in block]
        batch = dict(self._collate(examples))
        batch["rows"] = [self._measure(row) for row in rows]
        batch["ids"] = [row[0]["id"] for row in rows]
        return batch


def take(
    batch: "dict[str, Tensor]", indices: list[int], total: int, longest: int
) -> "dict[str, Tensor]":
    """Take some rows of a padded batch of `total` rows, cut to `longest` tokens.

    A tensor has one or two entries for each row. If it has two, all chosen sides come
    before the rejected ones. Integers of two dimensions are tokens. Other numbers, such
    as ratings, are not cut.
    """
    taken = {}
    for name, tensor in batch.items():
        entries = []
        for block in range(tensor.shape[0] // total):
            entries += [block * total + index for index in indices]
        selected = tensor[entries]
        if selected.dim() > 1 and not selected.is_floating_point():
            selected = selected[:, :longest]
        taken[name] = selected
    return taken


class PassesTrainer(Protocol):
    """The part of an `in_passes` trainer's interface that this package uses."""

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
        """Add a callback for the events of the training."""

    def train(self, resume_from_checkpoint: str | None = None) -> object:
        """Train to the end, from a checkpoint's folder if one is given."""


def in_passes(kind: "type[Trainer]") -> Callable[..., PassesTrainer]:
    """Derive a trainer class whose optimizer steps are computed in passes.

    Set `layout`, `pass_size`, `measure` and `batch` before training, and `width` if a
    row consists of several examples.

    Args:
        kind: a trainer class of TRL or transformers.
    """

    class InPasses(kind):
        """The parent class with a data loader that yields whole optimizer steps."""

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
            """Return a loader of optimizer steps.

            Its sampler has divided the rows among the workers, so accelerate must not.
            """
            from torch.utils.data import DataLoader

            args = self.args
            rows = RowsOrRepeats(self.train_dataset, self.width)
            sampler = StepSampler(
                len(rows),
                self.batch,
                args.process_index,
                args.world_size,
                args.seed,
                lambda: self.state.epoch or 0.0,
            )
            workers = args.dataloader_num_workers
            return DataLoader(
                rows,
                batch_sampler=sampler,
                collate_fn=StepCollator(self.data_collator, self.measure),
                num_workers=workers,
                # torch refuses a number where the loader has no workers.
                prefetch_factor=_PREFETCHED if workers else None,
                pin_memory=args.dataloader_pin_memory,
            )

        def training_step(
            self,
            model: "PeftModel",
            inputs: dict[str, Any],
            num_items_in_batch: Any = None,
        ) -> "Tensor | float":
            """Run the forward and backward passes of a step.

            Workers exchange gradients in the last pass only.
            """
            rows = inputs.pop("rows")
            ids = inputs.pop("ids")
            passes, step_rows = self._plan_passes(rows, ids)
            if not self.mean_over_rows:
                # TRL adds a mixture model's balancing loss in each pass, over this
                # number.
                self.current_gradient_accumulation_steps = len(passes)
            total: Tensor | float = 0.0
            for number, indices in enumerate(passes):
                longest = max(rows[index].longest for index in indices)
                batch = take(inputs, indices, len(rows), longest)
                pass_ids = [ids[index] for index in indices if ids[index]]
                self._weight = self._pass_weight(pass_ids, step_rows)
                with self._sync_gradients(model, last=number == len(passes) - 1):
                    loss = super().training_step(model, batch, num_items_in_batch)
                self.finiteness.add_loss(loss, pass_ids)
                total = total + loss
            return total

        def _plan_passes(
            self, rows: list[Row], ids: list[str]
        ) -> tuple[list[list[int]], int]:
            """Return this worker's passes and the step's number of rows on all workers.

            All workers make the same number of passes with the same numbers of rows,
            since they exchange sums and metrics in them. A row that a worker repeats to
            that end is a pass by itself that counts nothing; all other workers then put
            their last row into that pass.
            """
            workers = self.args.world_size
            own_rows = sum(1 for id in ids if id)  # a repeat has no id
            if workers == 1:
                return split(rows, self.pass_size, self.layout), own_rows
            step_rows = sum(self._gather_number(own_rows))
            has_repeats = step_rows < len(rows) * workers
            last_pass = [[len(rows) - 1]] if has_repeats else []
            first_rows = rows[: len(rows) - len(last_pass)]
            passes = split(first_rows, self.pass_size, self.layout)
            most = max(self._gather_number(len(passes)))
            if most > len(passes):
                passes = deal(first_rows, most, self.layout)
            return passes + last_pass, step_rows

        def _gather_number(self, number: int) -> list[int]:
            """Return each worker's value of a number."""
            import torch

            tensor = torch.tensor([number], device=self.args.device)
            return self.accelerator.gather(tensor).tolist()

        def _pass_weight(self, ids: list[str], step_rows: int) -> float:
            """Return a pass's weight in its step's loss, which workers average."""
            if not self.mean_over_rows:
                return 1.0
            # DDP divides the sum of the workers' gradients by their
            # number; this undoes it.
            return len(ids) / step_rows * self.args.world_size

        @contextlib.contextmanager
        def _sync_gradients(self, model: "PeftModel", last: bool) -> Iterator[None]:
            """Exchange gradients within the block only in a step's last pass."""
            # accelerate clips and steps only where it takes gradients for synchronized.
            self.accelerator.gradient_state._set_sync_gradients(last)
            # DeepSpeed refuses `no_sync` where it shards gradients.
            if last or self.is_deepspeed_enabled:
                yield
                return
            with self.accelerator.no_sync(model):
                yield

        def compute_loss(
            self,
            model: "PeftModel",
            inputs: "dict[str, Tensor]",
            *args: object,
            **more: object,
        ) -> "Tensor":
            """Return the parent's loss, multiplied by the weight of the pass."""
            return super().compute_loss(model, inputs, *args, **more) * self._weight

        def _get_grad_norm(
            self, *args: object, **more: object
        ) -> "Tensor | float | None":
            norm = super()._get_grad_norm(*args, **more)
            self.finiteness.set_gradient(norm)
            return norm

    return InPasses
