"""Settings of the passes that are chosen before the first step.

They are the size of a pass, whether activations are recomputed, and whether layers are
compiled. Real forward and backward passes decide. On a GPU, such a pass fails as a step
would fail. On a CPU, where the system would end the whole process, the bytes of its
tensors are counted, and it stops at the limit.
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
from bezoar_ray.train.packing import Layout, first_line, trial_loss
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

_OPTIMIZER_BYTES = 12
"""For each trained weight, in float32: its gradient and Adam's two moments."""
_SHORT = 64  # tokens of the first passes, which load kernels and compile layers
_MULTIPLE = 64  # of the max_length that an error message proposes
_MESSAGE_CHARACTERS = 200  # of a compiler's error that a message repeats
RECOMPUTING = {"use_reentrant": False}
"""Recommended by torch; reentrant checkpoints need gradients of the inputs."""


@dataclass
class Passes:
    """How the passes of a stage are made; part of the summary."""

    layout: str = "flat"
    size: str = ""
    gradient_checkpointing: bool = False
    compiled: bool = False
    because: list[str] = field(default_factory=list)
    """Why a setting differs from the recipe or from the fastest one."""

    def say(self, message: str) -> None:
        """Note a reason once."""
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
    """Build the callback that chooses the settings of the passes before training.

    It must be the trainer's first callback. Under ZeRO-3 nothing is tried, since a pass
    outside the trainer would find no weights.

    Args:
        trainer: of the data set; the callback sets its `pass_size`.
        job: has the recipe's settings.
        data: the rows that are trained on.
        passes: the callback writes its choices there.
        steps: optimizer steps of the whole stage.
    """
    from transformers import TrainerCallback

    class Fitting(TrainerCallback):
        """Runs on every worker before the first step."""

        def on_train_begin(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            model: "PeftModel | None" = None,
            **kwargs: object,
        ) -> None:
            section = job.section
            trainer.pass_size = wanted_size(section) or PassSize(tokens=AUTO_TOKENS)
            passes.gradient_checkpointing = args.gradient_checkpointing
            if section.zero_stage != 3:
                trial = PassTrial(
                    model,
                    trainer.compute_loss_context_manager,
                    data,
                    trainer.layout,
                    args.device,
                )
                _compile(trial, section, passes, steps)
                trainer.pass_size = fit_pass(trial, job, data, trainer.layout, passes)
            passes.layout = trainer.layout.name
            passes.size = str(trainer.pass_size)

    return Fitting()


class PassTrial:
    """Real passes with the lengths of a data set's longest rows.

    Their gradients are discarded.
    """

    def __init__(
        self,
        model: "PeftModel",
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
        data: TokenizedDataset,
        layout: Layout,
        device: "torch.device",
    ):
        self.model = model
        self._autocast = autocast
        self._data = data
        self._layout = layout
        self._device = device
        self._trained = [
            weight for weight in model.parameters() if weight.requires_grad
        ]

    def fits(self, size: PassSize, share: int, longest: int | None = None) -> bool:
        """Whether a pass of a size fits in the memory of every worker.

        Args:
            size: of the pass.
            share: rows of an optimizer step on one worker; no pass has more.
            longest: tokens of the longest row; by default that of the data set.
        """
        import torch

        longest = longest or longest_row(self._data, self._layout)
        row = self._data.sequences * longest
        tokens = size.at_most(row, share)
        sequences = self._data.sequences * math.ceil(tokens / row)
        fitted = True
        try:
            with self._limit_memory():
                self.run(sequences, math.ceil(tokens / sequences))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fitted = False
        # The next trial must not find free memory in pieces of this one's sizes.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        # Passes are the same on all workers, so the tightest memory decides.
        return on_every_worker(fitted, self._device)

    def run(self, sequences: int, length: int) -> None:
        """Run one pass of `sequences` sequences of `length` tokens, all labelled."""
        import torch

        device = self._device
        ids = torch.zeros((sequences, length), dtype=torch.long, device=device)
        labels = ids.clone()
        labels[:, 0] = IGNORED
        gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
        # Dropout keeps its masks for the backward pass; evaluation
        # would need less memory.
        self.model.train()
        # Dropout draws random numbers, and training must not depend on the trials.
        with torch.random.fork_rng(gpus):
            with self._autocast():
                loss = trial_loss(self.model, ids, labels)
            # Not backward(), which would leave gradients for the first step.
            torch.autograd.grad(loss, self._trained, allow_unused=True)

    @contextlib.contextmanager
    def _limit_memory(self) -> Iterator[None]:
        """Within the block, reserve memory for the gradients and the optimizer.

        Both are allocated in the first step.

        Raises:
            torch.OutOfMemoryError: the block does not fit beside them.
        """
        import torch

        weights = sum(weight.numel() for weight in self._trained)
        reserved = _OPTIMIZER_BYTES * weights
        if self._device.type != "cuda":
            with _limit_tensors(_free_memory() - reserved):
                yield
            return
        total = torch.cuda.get_device_properties(self._device).total_memory
        reserved += int(SPARE * total)
        block = torch.empty(reserved, dtype=torch.uint8, device=self._device)
        try:
            yield
        finally:
            del block


def _compile(trial: PassTrial, section: Training, passes: Passes, steps: int) -> None:
    """Compile the decoder layers if the recipe and the architecture allow it.

    The layers share the code of one compiled layer.
    """
    if passes.compiled or not section.compiles(steps):
        return
    import torch

    layers = _decoder_layers(trial.model)
    # With and without gradients, reference and policy, recomputed or not.
    torch._dynamo.config.recompile_limit = 64
    # It would split layers that are compiled already, without a gain here.
    torch._dynamo.config.optimize_ddp = False
    for layer in layers:
        layer.compile()
    try:
        trial.run(1, _SHORT)
        trial.run(1, _SHORT + 32)  # a second length compiles for any length
    except Exception as error:  # a compiler fails in many ways
        for layer in layers:
            # This undoes Module.compile, for which torch has no function.
            layer._compiled_call_impl = None
        cause = first_line(error)[:_MESSAGE_CHARACTERS]
        passes.say(f"layers are not compiled: {type(error).__name__}: {cause}")
        return
    passes.compiled = True


def _decoder_layers(model: "PeftModel") -> "list[torch.nn.Module]":
    """Return the model's decoder layers: its longest list of modules."""
    from torch.nn import ModuleList

    lists = [module for module in model.modules() if isinstance(module, ModuleList)]
    return list(max(lists, key=len, default=[]))


def fit_pass(
    trial: PassTrial, job: Job, data: TokenizedDataset, layout: Layout, passes: Passes
) -> PassSize:
    """Return the largest pass that fits, of those that the recipe allows.

    Afterwards the model recomputes activations if that pass needs it.

    Raises:
        BezoarError: not even the longest row fits by itself.
    """
    section = job.section
    # Load the kernels first, while there is memory for them.
    trial.run(1, _SHORT)

    def fits(size: PassSize, recompute: bool) -> bool:
        if not _set_recomputing(trial.model, recompute):
            return False
        return trial.fits(size, section.share)

    row = data.sequences * longest_row(data, layout)
    choice = choose_size(section, row, fits)
    if choice is None:
        raise BezoarError(f"{job.stage}: {_explain_misfit(trial, job, data)}")
    size, passes.gradient_checkpointing = choice
    wanted = wanted_size(section)
    if wanted and size != wanted:
        passes.say(
            f"a pass of {wanted} of {data.name} does not fit into memory: "
            f"passes have {size} at most"
        )
    return size


def _set_recomputing(model: "PeftModel", wanted: bool) -> bool:
    """Have activations recomputed in the backward pass, or kept.

    Returns:
        False if the model cannot recompute them.
    """
    causal_model = model.get_base_model()
    if not wanted:
        model.gradient_checkpointing_disable()
        return True
    if not causal_model.supports_gradient_checkpointing:
        return False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(RECOMPUTING))
    return True


def without_input_gradients(model: "PeftModel") -> None:
    """Keep transformers from requiring gradients of the layers' inputs.

    Only reentrant checkpoints need them. Each call would add a hook to the embeddings
    that is never removed, and with a live reference TRL makes such a call in every
    pass.
    """
    for module in (model, model.get_base_model()):
        module.enable_input_require_grads = lambda: None


def longest_row(data: TokenizedDataset, layout: Layout) -> int:
    """Return the tokens of the longest row, per sequence.

    Padded, both sides of a pair are as long as the longer one.
    """
    return data.longest if layout.flat else data.longest_sequence


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that memory has run out.

    It may come from torch or from one of CUDA's libraries, which allocate memory of
    their own.
    """
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    library_errors = (
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_NOT_INITIALIZED",
        "out of memory",
    )
    return any(text in str(error) for text in library_errors)


def _explain_misfit(trial: PassTrial, job: Job, data: TokenizedDataset) -> str:
    """Return the message for a row that does not fit, with a max_length that does."""
    one_row = PassSize(rows=1)
    length = data.longest_sequence // 2
    while length >= _MULTIPLE and not trial.fits(one_row, 1, length):
        length //= 2
    remedy = "no max_length fits"
    if length >= _MULTIPLE:
        remedy = f"max_length {length // _MULTIPLE * _MULTIPLE} fits"
    if job.section.gradient_checkpointing is False:
        remedy += "; gradient_checkpointing: auto needs less"
    return (
        f"the longest row of {data.name} has {data.longest_sequence} tokens. A pass of "
        "this row alone does not fit into a worker's memory beside the model: "
        f"{remedy}"
    )


def _free_memory() -> float:
    """Return this worker's share of the machine's free memory, in bytes."""
    import psutil
    from ray.train import get_context

    workers = get_context().get_local_world_size()
    return psutil.virtual_memory().available / workers


def on_every_worker(here: bool, device: "torch.device") -> bool:
    """Whether a condition holds on every worker."""
    import torch

    if not torch.distributed.is_initialized():
        return here
    flag = torch.tensor(float(here), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag.item())


def _limit_tensors(limit: float) -> contextlib.AbstractContextManager[object]:
    """Build a context that limits the bytes of the tensors that are made within it.

    Storages are counted once, from the operation that makes them until they are freed.
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

    class TensorLimit(TorchDispatchMode):
        """Raises torch.OutOfMemoryError before the system would end the process."""

        def __init__(self) -> None:
            super().__init__()
            self.bytes = 0
            self._counted: set[int] = set()

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            inputs = {id(storage) for storage in storages((args, kwargs))}
            result = function(*args, **(kwargs or {}))
            for storage in storages(result):
                key = id(storage)
                # Views and operations in place take no new memory.
                if key in inputs or key in self._counted:
                    continue
                self._count(key, storage.nbytes())
                weakref.finalize(storage, self._free, key, storage.nbytes())
            return result

        def _count(self, key: int, size: int) -> None:
            self._counted.add(key)
            self.bytes += size
            if self.bytes > limit:
                raise torch.OutOfMemoryError(
                    f"more than {limit / 2**30:.2f} GiB of tensors"
                )

        def _free(self, key: int, size: int) -> None:
            self._counted.discard(key)
            self.bytes -= size

    return TensorLimit()
