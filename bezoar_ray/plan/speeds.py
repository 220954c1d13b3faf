"""How fast QLoRA trains, from what was measured: the nearest shape, scaled by the card's operations.

Each entry is the median of its run. What a card does beyond its operations (memory, power limit) is not in here, so
another card than the measured one is a guess, and `bezoar plan` says so.
"""

import math
from dataclasses import dataclass

from bezoar_ray.runtime.gpus import GPUS, Gpu
from bezoar_ray.runtime.model_shapes import Shape


@dataclass(frozen=True)
class Measured:
    """Tokens a second, padding left out, of one GPU."""

    card: str
    billions: float
    """Weights of the model, without its input embeddings."""
    tokens: int
    """Of a pass."""
    compiled: bool
    recomputed: bool
    """Whether activations are recomputed in the backward pass."""
    tokens_per_s: float

    @property
    def of_peak(self) -> float:
        """The share of the card's operations by its maker: six for each weight and token."""
        return 6e9 * self.billions * self.tokens_per_s / (GPUS[self.card].tflops * 1e12)


SPEEDS = (
    Measured("H200", 3.3, 3_839, compiled=False, recomputed=False, tokens_per_s=16_185),
    Measured(
        "H200", 3.3, 16_210, compiled=False, recomputed=False, tokens_per_s=20_696
    ),
    Measured("H200", 3.3, 16_210, compiled=False, recomputed=True, tokens_per_s=14_458),
    Measured("H200", 3.3, 3_839, compiled=True, recomputed=False, tokens_per_s=20_586),
    Measured("H200", 3.3, 16_210, compiled=True, recomputed=True, tokens_per_s=20_281),
)
"""QLoRA of rank 16 on all linear layers, flat passes, rows of 16 to 2,048 tokens: a loop of torch, transformers, peft
and bitsandbytes (torch 2.11, 2026-11-27), without the trainer's own work between the steps."""


_LAUNCHED, _LAUNCHED_COMPILED = 0.0091, 0.0072
"""Seconds for each layer that a pass takes however small it is, as its kernels are launched one by one: 26 layers took
.245 s for 929 tokens and .237 s for 3,839, and .187 s compiled. Compiled layers were not measured on fewer tokens."""
_LAUNCHED_AGAIN = 1.67
"""Times as long where activations are recomputed: .435 s against .261 s, for 929 tokens in padded passes. Compiled, it
is a guess."""


def training_speed(
    shape: Shape, gpu: Gpu, tokens: float, compiled: bool, recomputed: bool
) -> float:
    """Tokens a second that one GPU trains on.

    Args:
        shape: of the base model.
        gpu: its kind.
        tokens: in a pass, about.
        compiled: whether the decoder layers are.
        recomputed: whether activations are recomputed in the backward pass.
    """
    weights = (shape.linear_weights + shape.vocabulary * shape.hidden) / 1e9
    alike = [
        found
        for found in SPEEDS
        if (found.compiled, found.recomputed) == (compiled, recomputed)
    ]

    def distance(found: Measured) -> tuple[float, float]:
        return abs(math.log(found.billions / weights)), abs(
            math.log(found.tokens / tokens)
        )

    nearest = min(alike, key=distance)
    busy = nearest.of_peak * gpu.tflops * 1e12 / (6e9 * weights)
    launching = (
        (_LAUNCHED_COMPILED if compiled else _LAUNCHED)
        * shape.layers
        * (_LAUNCHED_AGAIN if recomputed else 1)
    )
    return min(busy, tokens / launching)
