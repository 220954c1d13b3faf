"""Train the embedded models from scratch on CPUs.

Blocks of tokens go in, and a Hugging Face Llama comes out.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any

from bezoar_ray.runtime.dtype import compute_dtype
from bezoar_ray.tiny.tokens import CONTEXT

Say = Callable[[str], None]
"""Takes a line of progress."""
Block = tuple[list[int], list[int]]
"""Token ids and labels, of one example or of several that are packed together."""
IGNORED = -100
"""The label of a token that is not trained on."""
PAD_ID = 0
BOS_ID = 1
EOS_ID = 2
MUON_PEAK = 4e-3
"""Peak learning rate of the matrices. That of the other weights is the caller's."""
_PACKED_TOGETHER = 256  # examples
_WARM_UP = 40  # steps
_REPORT_EVERY = 100  # steps


def new_model(vocabulary: int) -> Any:
    """Return an untrained Llama of 2.5 M parameters with a context of 2,048 tokens.

    Its heads are 64 wide, as vLLM on CPU requires. Attention is eager: on CPUs without
    AMX, torch's fused attention takes almost twice as long in bfloat16.
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
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.06,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def blocks(examples: Iterable[Block], length: int) -> Iterator[Block]:
    """Pack whole examples into blocks of `length` tokens, and leave longer ones out."""
    from datasets import Dataset
    from trl import pack_dataset

    rows = (
        {"input_ids": ids, "labels": labels}
        for ids, labels in examples
        if len(ids) <= length
    )
    while batch := list(islice(rows, _PACKED_TOGETHER)):
        for packed in pack_dataset(Dataset.from_list(batch), length, "bfd"):
            ids = _pad(packed["input_ids"], PAD_ID, length)
            labels = _pad(packed["labels"], IGNORED, length)
            yield ids, labels


def stream(documents: Iterable[list[int]], length: int) -> Iterator[Block]:
    """Cut documents, one after another, into blocks of `length` tokens.

    Every token is a label.
    """
    ids: list[int] = []
    for document in documents:
        ids += document
        while len(ids) >= length:
            yield ids[:length], ids[:length]
            ids = ids[length:]


def _pad(values: list[int], filler: int, length: int) -> list[int]:
    return values + [filler] * (length - len(values))


def fit(
    model: Any,
    data: Iterator[Block],
    *,
    steps: int,
    batch: int,
    peak: float,
    say: Say,
) -> Any:
    """Train a model in place and return it, in bfloat16.

    Its weights are bfloat16 where this CPU computes fast in it, and the optimizers keep
    them in float32. The process group (`torch.distributed`) must be initialized.

    Args:
        model: An untrained model, or one to train further.
        data: The same blocks in every process; each takes its share of them.
        steps: Optimizer steps.
        batch: Blocks of one step, over all processes.
        peak: Peak learning rate of embeddings and norms.
        say: Takes a line of progress every 100 steps.
    """
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    masters = [parameter.detach().float().clone() for parameter in model.parameters()]
    dtype = getattr(torch, compute_dtype("bfloat16"))
    parallel = DistributedDataParallel(model.to(dtype).train())
    if dtype is torch.float32:
        _orthogonalize_in_float32()
    optimizers = _optimizers(model, masters, peak)
    processes = dist.get_world_size()
    own_blocks = islice(data, dist.get_rank(), None, processes)
    losses = []
    for step in range(steps):
        scale = _schedule(step, steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
        rows = list(islice(own_blocks, batch // processes))
        losses.append(_step(parallel, masters, optimizers, rows))
        done = step + 1
        if done % _REPORT_EVERY == 0 or done == steps:
            say(f"step {done}/{steps}  loss {sum(losses) / len(losses):.3f}")
            losses = []
    return model.bfloat16().eval()


def _optimizers(model: Any, masters: list[Any], peak: float) -> list[Any]:
    """Return Muon for the matrices of the layers, and AdamW for the other weights.

    Muon learns here in about half the steps. Its step is a quarter of the work, so each
    process does it for its share of the matrices.
    """
    import torch
    from torch.distributed.optim import ZeroRedundancyOptimizer

    matrices = []
    others = []
    for (name, _), master in zip(model.named_parameters(), masters, strict=True):
        if "layers." in name and master.ndim == 2:
            matrices.append(master)
        else:
            others.append(master)
    muon = ZeroRedundancyOptimizer(
        [{"params": matrices, "initial_lr": MUON_PEAK}],
        torch.optim.Muon,
        lr=MUON_PEAK,
        momentum=0.95,
        weight_decay=0.05,
        # Scales an update to the size of AdamW's, so that AdamW's rates suit.
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
def _orthogonalize_in_float32() -> None:
    """Let Muon's iteration compute in the type of the gradient.

    torch casts the gradient to bfloat16 by calling its `bfloat16` method, on CPUs that
    are slow in it, too.
    """
    import torch
    from torch.optim import _muon

    class Gradient(torch.Tensor):
        """A gradient whose cast to bfloat16 is a copy in its own type."""

        def bfloat16(self) -> Any:
            return self.as_subclass(torch.Tensor).clone()

    iterate = _muon._zeropower_via_newtonschulz

    def iterate_in_own_type(gradient: Any, *options: Any) -> Any:
        return iterate(gradient.as_subclass(Gradient), *options)

    _muon._zeropower_via_newtonschulz = iterate_in_own_type  # type: ignore[assignment]


def _step(
    model: Any, masters: list[Any], optimizers: list[Any], rows: list[Block]
) -> float:
    """Take one optimizer step and return the loss."""
    import torch

    ids = torch.tensor([ids for ids, _ in rows])
    labels = torch.tensor([labels for _, labels in rows])
    # Shifted here, as the model gives logits for some positions only.
    next_labels = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    # Logits are only computed at positions at which some row has a next label.
    positions = (next_labels != IGNORED).any(0).nonzero().squeeze(1)
    loss = model(
        input_ids=ids,
        labels=labels,
        position_ids=_positions(ids),
        use_cache=False,
        logits_to_keep=positions,
        shift_labels=next_labels[:, positions],
    ).loss
    loss.backward()
    for master, parameter in zip(masters, model.parameters(), strict=True):
        master.grad = parameter.grad.float()
        parameter.grad = None
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
    with torch.no_grad():
        # Rounded anew from float32 after each step, so that small updates add up.
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.copy_(master)
    return float(loss.detach())


def _positions(ids: Any) -> Any:
    """Return positions that start again at each bos token.

    From such positions, transformers masks each text from the one before it.
    """
    import torch

    index = torch.arange(ids.shape[1]).expand_as(ids)
    start = torch.where(ids == BOS_ID, index, 0).cummax(dim=1).values
    return index - start


def _schedule(step: int, steps: int) -> float:
    """Return the share of the peak rate: linear warm-up, and a cosine to a twentieth."""
    warm_up = min(1.0, (step + 1) / _WARM_UP)
    cosine = math.cos(math.pi * step / steps)
    return warm_up * (0.525 + 0.475 * cosine)
