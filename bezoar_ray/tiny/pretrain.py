"""Training of the embedded models from scratch, on CPU in bf16: blocks of tokens in, a Hugging Face Llama out."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Say = Callable[[str], None]
IGNORED = -100


def new_model(vocabulary: int) -> Any:
    """A Llama of 2.5 M parameters with a context of 2,048; its heads are 64 wide, as vLLM on CPU wants them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def blocks(examples: Iterable[tuple[list[int], list[int]]], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Examples (ids, labels) packed whole into blocks of `length` tokens; a longer one is left out."""
    ids, labels = [], []
    for more, marks in examples:
        if len(more) > length:
            continue
        if len(ids) + len(more) > length:
            yield _padded(ids, 0, length), _padded(labels, IGNORED, length)
            ids, labels = [], []
        ids, labels = ids + more, labels + marks


def stream(documents: Iterable[list[int]], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Documents one after another, cut into blocks of `length` tokens, every token a label."""
    ids = []
    for document in documents:
        ids += document
        while len(ids) >= length:
            yield ids[:length], ids[:length]
            ids = ids[length:]


def _padded(values: list[int], filler: int, length: int) -> list[int]:
    return values + [filler] * (length - len(values))


def fit(model: Any, data: Iterator, *, steps: int, batch: int, peak: float, say: Say) -> Any:
    """Train for `steps` of `batch` blocks each. Weights compute in bf16; the optimiser keeps them in float32."""
    import torch

    torch.manual_seed(0)
    masters = [parameter.detach().float().clone() for parameter in model.parameters()]
    model.bfloat16().train()
    optimiser = torch.optim.AdamW(masters, lr=peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    total, seen = 0.0, 0
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = peak * _schedule(step, steps)
        total, seen = total + _step(model, masters, optimiser, [next(data) for _ in range(batch)]), seen + 1
        if (step + 1) % 100 == 0 or step + 1 == steps:
            say(f"step {step + 1}/{steps}  loss {total / seen:.3f}")
            total, seen = 0.0, 0
    return model.eval()


def _step(model: Any, masters: list, optimiser: Any, rows: list[tuple[list[int], list[int]]]) -> float:
    import torch

    loss = model(input_ids=torch.tensor([ids for ids, _ in rows]), labels=torch.tensor([marks for _, marks in rows])).loss
    loss.backward()
    for master, parameter in zip(masters, model.parameters(), strict=True):
        master.grad, parameter.grad = parameter.grad.float(), None
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    optimiser.step()
    with torch.no_grad():
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.copy_(master)
    return float(loss.detach())


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first 40 steps, then a cosine down to a twentieth."""
    return min(1.0, (step + 1) / 40) * (0.525 + 0.475 * math.cos(math.pi * step / steps))
