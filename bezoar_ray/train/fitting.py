"""Before the first step: how large a pass may be, whether its activations are recomputed, whether layers are compiled.

One real forward and backward pass of the largest size decides. On a GPU it fails as a step would fail; on a CPU, where
the system would end the whole process, the bytes of its tensors are counted and it stops at the limit.
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Training
from bezoar_ray.runtime.logs import event
from bezoar_ray.train.encoding import IGNORED
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.packing import Layout, first_line
from bezoar_ray.train.pass_size import (
    AUTO_TOKENS,
    SPARE,
    PassSize,
    choose_size,
    wanted_size,
)
from bezoar_ray.train.tokenized_dataset import TokenizedDataset

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import (
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

    from bezoar_ray.train.passes import PassesTrainer

_OPTIMISER = (
    12  # bytes for each trained weight: its gradient and Adam's two moments, in float32
)
_SHORT = 64  # tokens of the first passes, which load and compile
_MULTIPLE = 64  # of the lengths that are advised
RECOMPUTING = {
    "use_reentrant": False
}  # torch's own advice; reentrant checkpoints need gradients of the inputs


@dataclass
class Passes:
    """How the passes of a stage are made; it goes into the summary."""

    layout: str = "flat"
    size: str = ""
    gradient_checkpointing: bool = False
    compiled: bool = False
    because: list[str] = field(default_factory=list)
    """Why something is not as the recipe asks, or as it would be fastest."""

    def say(self, message: str) -> None:
        """Note a reason, once."""
        if message not in self.because:
            self.because.append(message)
            event(message)


def fitting(
    trainer: "PassesTrainer",
    job: Job,
    data: TokenizedDataset,
    passes: Passes,
    steps: int,
) -> "TrainerCallback":
    """A callback that settles before training how its passes are made. It is the first of the trainer's callbacks.

    Under ZeRO-3 nothing is tried: a pass outside of the trainer would find no weights.

    Args:
        trainer: of the data set; its `pass_size` is set.
        job: has the recipe's wishes.
        data: the rows that are trained on.
        passes: what is decided is written there.
        steps: optimiser steps of the whole stage.
    """
    from transformers import TrainerCallback

    class Fitting(TrainerCallback):
        """On every worker, before the first step."""

        def on_train_begin(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            model: "PeftModel | None" = None,
            **kwargs: object,
        ) -> None:
            part = job.part
            trainer.pass_size = wanted_size(part) or PassSize(tokens=AUTO_TOKENS)
            passes.gradient_checkpointing = args.gradient_checkpointing
            if part.zero_stage != 3:
                trial = PassTrial(
                    model,
                    trainer.compute_loss_context_manager,
                    data,
                    trainer.layout,
                    args.device,
                )
                _compile(trial, part, passes, steps)
                trainer.pass_size = _fit(trial, job, data, trainer.layout, passes)
            passes.layout, passes.size = trainer.layout.name, str(trainer.pass_size)

    return Fitting()


class PassTrial:
    """Real passes of a size, made of the longest rows of a data set, whose gradients are thrown away."""

    def __init__(
        self,
        model: "PeftModel",
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
        data: TokenizedDataset,
        layout: Layout,
        device: "torch.device",
    ):
        self.model, self._autocast, self._data, self._device = (
            model,
            autocast,
            data,
            device,
        )
        self._layout = layout
        self._trained = [
            weight for weight in model.parameters() if weight.requires_grad
        ]

    def fits(self, size: PassSize, share: int, longest: int | None = None) -> bool:
        """Whether such a pass fits into the memory of every worker.

        Args:
            size: of the pass.
            share: rows of an optimiser step that a worker has: no pass has more.
            longest: tokens of the longest row; the data set's where empty.
        """
        import torch

        row = self._data.sequences * (longest or longest_row(self._data, self._layout))
        tokens = size.at_most(row, share)
        sequences = self._data.sequences * math.ceil(tokens / row)
        fitted = True
        try:
            with self._limited():
                self.run(sequences, math.ceil(tokens / sequences))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fitted = False
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return everywhere(fitted, self._device)

    def run(self, sequences: int, length: int) -> None:
        """One pass of so many sequences of so many tokens, all of them labelled."""
        import torch

        device = self._device
        ids = torch.zeros((sequences, length), dtype=torch.long, device=device)
        mask = torch.ones_like(ids)
        labels = ids.clone()
        labels[:, 0] = IGNORED
        seeds = [torch.cuda.current_device()] if device.type == "cuda" else []
        self.model.train()
        with torch.random.fork_rng(seeds):
            with self._autocast():
                output = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    labels=labels,
                    fused_lm_head=True,
                )
                loss = output.log_probs.mean()
            torch.autograd.grad(loss, self._trained, allow_unused=True)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """Room is left for gradients and the optimiser, which come with the first step.

        Raises:
            torch.OutOfMemoryError: what is computed in the block does not fit beside them.
        """
        import torch

        later = _OPTIMISER * sum(weight.numel() for weight in self._trained)
        if self._device.type != "cuda":
            with _counted(_free_memory() - later):
                yield
            return
        spare = int(SPARE * torch.cuda.get_device_properties(self._device).total_memory)
        kept = torch.empty(later + spare, dtype=torch.uint8, device=self._device)
        try:
            yield
        finally:
            del kept


def _compile(trial: PassTrial, part: Training, passes: Passes, steps: int) -> None:
    """Compile the decoder layers where the recipe wants it and the architecture can be; one serves as all."""
    if not part.compiles(steps) or passes.compiled:
        return
    import torch

    layers = _decoder_layers(trial.model)
    torch._dynamo.config.recompile_limit = (
        64  # with and without gradients, reference and policy, recomputed or not
    )
    torch._dynamo.config.optimize_ddp = (
        False  # it would cut layers that are compiled already, and gains nothing here
    )
    for layer in layers:
        layer.compile()
    try:
        for length in (_SHORT, _SHORT + 32):  # the second one compiles for any length
            trial.run(1, length)
    except Exception as error:  # a compiler fails in many ways
        for layer in layers:
            layer._compiled_call_impl = None
        passes.say(
            f"layers are not compiled: {type(error).__name__}: {first_line(error)[:200]}"
        )
        return
    passes.compiled = True


def _decoder_layers(model: "PeftModel") -> "list[torch.nn.Module]":
    """The layers that follow one another in the model."""
    from torch.nn import ModuleList

    lists = [module for module in model.modules() if isinstance(module, ModuleList)]
    return list(max(lists, key=len, default=[]))


def _fit(
    trial: PassTrial, job: Job, data: TokenizedDataset, layout: Layout, passes: Passes
) -> PassSize:
    """The largest pass that fits, of those that the recipe allows; the model recomputes activations as it needs.

    Raises:
        BezoarError: not even the longest row fits by itself.
    """
    part = job.part
    trial.run(1, _SHORT)  # loads the kernels, while there is room for them

    def fits(size: PassSize, recompute: bool) -> bool:
        return _recompute(trial.model, recompute) and trial.fits(size, part.share)

    found = choose_size(part, data.sequences * longest_row(data, layout), fits)
    if found is None:
        raise BezoarError(f"{job.stage}: {_refusal(trial, job, data)}")
    size, passes.gradient_checkpointing = found
    wanted = wanted_size(part)
    if wanted and size != wanted:
        passes.say(
            f"a pass of {wanted} of {data.name} does not fit into memory: passes have {size} at most"
        )
    return size


def _recompute(model: "PeftModel", wanted: bool) -> bool:
    """Have activations made again in the backward pass, in place of being kept; False where the model cannot."""
    causal = model.get_base_model()
    if not wanted:
        model.gradient_checkpointing_disable()
    elif causal.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs=dict(RECOMPUTING)
        )
    return not wanted or causal.supports_gradient_checkpointing


def without_input_gradients(model: "PeftModel") -> None:
    """Have transformers leave the inputs of the layers without gradients, which only reentrant checkpoints need.

    Each call would add a hook to the embeddings that none removes; with a live reference TRL makes one in every pass.
    """
    for module in (model, model.get_base_model()):
        module.enable_input_require_grads = lambda: None


def longest_row(data: TokenizedDataset, layout: Layout) -> int:
    """Tokens of the longest row for each of its sequences. Padded, both sides of a pair are as long as the longer."""
    return data.longest if layout.flat else data.longest_sequence


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory has run out: torch's own error, or one of CUDA's libraries, which allocate beside it."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    of_libraries = (
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_NOT_INITIALIZED",
        "out of memory",
    )
    known = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
    return known or any(name in str(error) for name in of_libraries)


def _refusal(trial: PassTrial, job: Job, data: TokenizedDataset) -> str:
    one, length = PassSize(rows=1), data.longest_sequence // 2
    while length >= _MULTIPLE and not trial.fits(one, 1, length):
        length //= 2
    shorter = (
        f"max_length {length // _MULTIPLE * _MULTIPLE} fits"
        if length >= _MULTIPLE
        else "no max_length fits"
    )
    recompute = (
        ""
        if job.part.gradient_checkpointing is not False
        else "; gradient_checkpointing: auto takes less"
    )
    return (
        f"the longest row of {data.name} has {data.longest_sequence} tokens. A pass of it alone does not fit into a "
        f"worker's memory beside the model: {shorter}{recompute}"
    )


def _free_memory() -> float:
    """Bytes of the machine's memory that are this worker's share."""
    import psutil
    from ray.train import get_context

    return psutil.virtual_memory().available / get_context().get_local_world_size()


def everywhere(here: bool, device: "torch.device") -> bool:
    """Whether it is so on every worker."""
    import torch

    if not torch.distributed.is_initialized():
        return here
    flag = torch.tensor(float(here), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag.item())


def _counted(limit: float) -> contextlib.AbstractContextManager[object]:
    """A context in which tensors may hold so many bytes at one time beside those that were there before.

    Storages are counted once, from the operation that made them until they are freed.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def storages(values: object) -> "list[torch.UntypedStorage]":
        return [
            leaf.untyped_storage()
            for leaf in tree_leaves(values)
            if isinstance(leaf, torch.Tensor)
        ]

    class Counted(TorchDispatchMode):
        """Raises torch.OutOfMemoryError at the limit, before the system ends the process."""

        def __init__(self) -> None:
            super().__init__()
            self.now = 0
            self._alive: set[int] = set()

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            given = {id(storage) for storage in storages((args, kwargs))}
            made = function(*args, **(kwargs or {}))
            for storage in storages(made):
                if id(storage) not in given | self._alive:
                    self._count(id(storage), storage.nbytes())
                    weakref.finalize(storage, self._free, id(storage), storage.nbytes())
            return made

        def _count(self, key: int, size: int) -> None:
            self._alive.add(key)
            self.now += size
            if self.now > limit:
                raise torch.OutOfMemoryError(
                    f"more than {limit / 2**30:.2f} GiB of tensors"
                )

        def _free(self, key: int, size: int) -> None:
            self._alive.discard(key)
            self.now -= size

    return Counted()
