"""Whether the largest training step fits into memory, before the first one; where it does not, what would fit."""

import weakref
from collections.abc import Callable
from typing import Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.train.prepared import Prepared
from bezoar_ray.train.worker import Job

PROBES = (64, 128, 256)  # tokens of the steps that are measured
_OPTIMISER = 12  # bytes for each trained weight: its gradient and Adam's two moments, in float32
_MULTIPLE = 64  # of the lengths that are advised

Needs = Callable[[int, int], float]
"""Bytes that a pass of so many sequences of so many tokens takes beside the model's weights."""


def checking(trainer: Any, job: Job, data: Prepared, micro: int) -> Any:
    """A callback that refuses a data set whose longest rows would not fit, `micro` in a pass, by what short ones take.

    Under ZeRO-3 nothing is asked: a pass outside of the trainer would find no weights.
    """
    from transformers import TrainerCallback

    class Checking(TrainerCallback):
        """On every worker, before the first step."""

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if job.part.zero_stage == 3:
                return
            needs, free = needed(model, trainer.compute_loss_context_manager), _free(args.device)
            if needs(micro * data.sequences, data.longest) > free:
                raise BezoarError(f"{job.stage}: {_refusal(micro, data, needs, free)}")

    return Checking()


def needed(model: Any, autocast: Callable[[], Any]) -> Needs:
    """Measured on one short sequence of each of `PROBES`.

    What is kept for the backward pass grows with the length, and where attention is not fused with its square.
    """
    import numpy

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    curve = numpy.polyfit(PROBES, [_peak(model, trained, length, autocast) for length in PROBES], 2)
    fixed = _OPTIMISER * sum(weight.numel() for weight in trained)
    return lambda sequences, length: fixed + sequences * float(numpy.polyval(curve, length))


def _peak(model: Any, trained: list[Any], length: int, autocast: Callable[[], Any]) -> int:
    import torch

    ids = torch.zeros((1, length), dtype=torch.long, device=model.device)
    devices = [torch.cuda.current_device()] if model.device.type == "cuda" else []
    model.train()
    with torch.random.fork_rng(devices), _allocated() as found:
        with autocast():
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        torch.autograd.grad(loss, trained, allow_unused=True)
    return found.peak


def _allocated() -> Any:
    """A context that knows the most bytes that tensors made in it held at one time, whatever the device."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Allocated(TorchDispatchMode):
        """Storages are counted once, from the operation that made them until they are freed."""

        def __init__(self) -> None:
            super().__init__()
            self.peak = self._now = 0
            self._alive: set[int] = set()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {id(storage) for storage in _storages((args, kwargs))}
            made = function(*args, **(kwargs or {}))
            for storage in _storages(made):
                if id(storage) not in given | self._alive:
                    self._count(id(storage), storage.nbytes())
                    weakref.finalize(storage, self._freed, id(storage), storage.nbytes())
            return made

        def _count(self, key: int, size: int) -> None:
            self._alive.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)

        def _freed(self, key: int, size: int) -> None:
            self._alive.discard(key)
            self._now -= size

    def _storages(values: Any) -> list[Any]:
        return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]

    return Allocated()


def _free(device: Any) -> float:
    """Bytes that a worker can still take of its GPU or its share of the machine; where they differ, the least."""
    import psutil
    import torch
    from ray.train import get_context

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        here = torch.cuda.mem_get_info(device)[0] + unused
    else:
        here = psutil.virtual_memory().available / get_context().get_local_world_size()
    if not torch.distributed.is_initialized():
        return here
    least = torch.tensor(float(here), device=device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return least.item()


def _refusal(micro: int, data: Prepared, needs: Needs, free: float) -> str:
    sides, longest = data.sequences, data.longest
    fewer = [size for size in range(1, micro) if needs(size * sides, longest) <= free]
    shorter = [length for length in range(_MULTIPLE, longest, _MULTIPLE) if needs(micro * sides, length) <= free]
    fits = [f"{name} {found[-1]}" for name, found in (("micro_batch", fewer), ("max_length", shorter)) if found]
    return (
        f"a pass of {micro} rows of {data.name} takes about {needs(micro * sides, longest) / 2**30:.2f} GiB beside "
        f"the model, as the longest has {longest} tokens; a worker has {free / 2**30:.2f} GiB. "
        f"What fits: {' or '.join(fits) or 'nothing'}. gradient_checkpointing: true takes less"
    )
