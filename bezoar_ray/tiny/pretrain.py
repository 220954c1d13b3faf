"""Training of the embedded models from scratch, on CPU: blocks of tokens in, a Hugging Face Llama out."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any

from bezoar_ray.runtime.dtype import compute_dtype

Say = Callable[[str], None]
IGNORED = -100
BOS_ID = 1
MUON_PEAK = 4e-3
_PACKED_TOGETHER = 256  # examples


def new_model(vocabulary: int) -> Any:
    """A Llama of 2.5 M parameters with a context of 2,048; its heads are 64 wide, as vLLM on CPU wants them.

    It attends eagerly: on CPUs without AMX, torch's fused attention takes almost twice as long in bf16.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.06,
        pad_token_id=0,
        bos_token_id=BOS_ID,
        eos_token_id=2,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def blocks(
    examples: Iterable[tuple[list[int], list[int]]], length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Examples (ids, labels) packed whole into blocks of `length` tokens; a longer one is left out."""
    from datasets import Dataset
    from trl import pack_dataset

    rows = (
        {"input_ids": ids, "labels": labels}
        for ids, labels in examples
        if len(ids) <= length
    )
    while some := list(islice(rows, _PACKED_TOGETHER)):
        for item in pack_dataset(Dataset.from_list(some), length, "bfd"):
            yield (
                _padded(item["input_ids"], 0, length),
                _padded(item["labels"], IGNORED, length),
            )


def stream(
    documents: Iterable[list[int]], length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Documents one after another, cut into blocks of `length` tokens, every token a label."""
    ids = []
    for document in documents:
        ids += document
        while len(ids) >= length:
            yield ids[:length], ids[:length]
            ids = ids[length:]


def _padded(values: list[int], filler: int, length: int) -> list[int]:
    return values + [filler] * (length - len(values))


def fit(
    model: Any, data: Iterator, *, steps: int, batch: int, peak: float, say: Say
) -> Any:
    """Train for `steps` of `batch` blocks each, which the processes of the group share out among themselves.

    Weights compute in bfloat16 where the CPU knows it; the optimisers keep them in float32, and what comes out is
    bfloat16. The group must stand (`torch.distributed`).
    """
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    masters = [parameter.detach().float().clone() for parameter in model.parameters()]
    dtype = getattr(torch, compute_dtype("bfloat16"))
    parallel = DistributedDataParallel(model.to(dtype).train())
    if dtype is torch.float32:
        _orthogonalise_in_float32()
    optimisers = _optimisers(model, masters, peak)
    share, data = (
        batch // dist.get_world_size(),
        islice(data, dist.get_rank(), None, dist.get_world_size()),
    )
    total, seen = 0.0, 0
    for step in range(steps):
        for group in (
            group for optimiser in optimisers for group in optimiser.param_groups
        ):
            group["lr"] = group["initial_lr"] * _schedule(step, steps)
        total, seen = (
            total + _step(parallel, masters, optimisers, list(islice(data, share))),
            seen + 1,
        )
        if (step + 1) % 100 == 0 or step + 1 == steps:
            say(f"step {step + 1}/{steps}  loss {total / seen:.3f}")
            total, seen = 0.0, 0
    return model.bfloat16().eval()


def _optimisers(model: Any, masters: list, peak: float) -> list:
    """Muon for the layers' matrices, which learns in about half the steps here; AdamW for embeddings and norms.

    A step of Muon is a quarter of the work: each process does it for its share of the matrices.
    """
    import torch
    from torch.distributed.optim import ZeroRedundancyOptimizer

    names = [name for name, _ in model.named_parameters()]
    matrices = [
        m
        for name, m in zip(names, masters, strict=True)
        if "layers." in name and m.ndim == 2
    ]
    others = [
        m
        for name, m in zip(names, masters, strict=True)
        if "layers." not in name or m.ndim != 2
    ]
    muon = ZeroRedundancyOptimizer(
        [{"params": matrices, "initial_lr": MUON_PEAK}],
        torch.optim.Muon,
        lr=MUON_PEAK,
        momentum=0.95,
        weight_decay=0.05,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(
        [{"params": others, "initial_lr": peak}],
        lr=peak,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
    )
    return [muon, adam]


@cache
def _orthogonalise_in_float32() -> None:
    """Muon's own iteration in the gradient's type: torch's has it in bfloat16, whatever the CPU."""
    import torch
    from torch.optim import _muon

    class Gradient(torch.Tensor):
        """What asks for bfloat16 gets a copy as it is."""

        def bfloat16(self) -> Any:
            return self.as_subclass(torch.Tensor).clone()

    iterate = _muon._zeropower_via_newtonschulz
    _muon._zeropower_via_newtonschulz = lambda grad, *how: iterate(
        grad.as_subclass(Gradient), *how
    )


def _step(
    model: Any, masters: list, optimisers: list, rows: list[tuple[list[int], list[int]]]
) -> float:
    import torch

    ids, labels = (torch.tensor(side) for side in zip(*rows, strict=True))
    following = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    told = (
        (following != IGNORED).any(0).nonzero().squeeze(1)
    )  # positions at which some row has a token to say
    loss = model(
        input_ids=ids,
        labels=labels,
        position_ids=_positions(ids),
        use_cache=False,
        logits_to_keep=told,
        shift_labels=following[:, told],
    ).loss
    loss.backward()
    for master, parameter in zip(masters, model.parameters(), strict=True):
        master.grad, parameter.grad = parameter.grad.float(), None
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    for optimiser in optimisers:
        optimiser.step()
    with torch.no_grad():
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.copy_(master)
    return float(loss.detach())


def _positions(ids: Any) -> Any:
    """Positions that start again at each bos token: transformers then lets no text attend to the one before it."""
    import torch

    where = torch.arange(ids.shape[1]).expand_as(ids)
    return where - torch.where(ids == BOS_ID, where, 0).cummax(dim=1).values


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first 40 steps, then a cosine down to a twentieth."""
    return min(1.0, (step + 1) / 40) * (
        0.525 + 0.475 * math.cos(math.pi * step / steps)
    )
