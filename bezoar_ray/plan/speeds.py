"""How fast QLoRA trains, from measurements.

The nearest measured case is scaled by the GPU's operations. What else a GPU has (memory
speed, power limit) does not count, so the speed of a kind that was not measured is a
guess, and `bezoar plan` says so. Each entry is the median of its run.
"""

import math
from dataclasses import dataclass

from bezoar_ray.runtime.gpus import GPUS, Gpu
from bezoar_ray.runtime.model_shapes import Shape


@dataclass(frozen=True)
class Measured:
    """The training speed of one GPU in one case."""

    card: str
    billions: float
    """Billions of weights of the model, without its input embeddings."""
    tokens: int
    """Tokens of a pass."""
    compiled: bool
    """Whether the decoder layers are compiled."""
    recomputed: bool
    """Whether activations are recomputed in the backward pass."""
    tokens_per_s: float
    """Tokens trained on in a second. Padding does not count."""

    @property
    def of_peak(self) -> float:
        """Share of the operations that the GPU's maker promises."""
        peak = GPUS[self.card].tflops * 1e12
        return _operations_per_token(self.billions) * self.tokens_per_s / peak


SPEEDS = (
    Measured("H200", 3.3, 3_839, compiled=False, recomputed=False, tokens_per_s=16_185),
    Measured(
        "H200", 3.3, 16_210, compiled=False, recomputed=False, tokens_per_s=20_696
    ),
    Measured("H200", 3.3, 16_210, compiled=False, recomputed=True, tokens_per_s=14_458),
    Measured("H200", 3.3, 3_839, compiled=True, recomputed=False, tokens_per_s=20_586),
    Measured("H200", 3.3, 16_210, compiled=True, recomputed=True, tokens_per_s=20_281),
)
"""QLoRA of rank 16 on all linear layers, in flat passes, with rows of 16 to 2,048
tokens.

Measured by a loop of torch, transformers, peft and bitsandbytes (torch 2.11,
2026-11-27), without the trainer's own work between the steps.
"""


_LAUNCH_SECONDS = 0.0091
"""Seconds for each layer that a pass takes even if it is small, since its kernels are
launched one by one: 26 layers took 0.245 s for 929 tokens and 0.237 s for 3,839."""
_LAUNCH_SECONDS_COMPILED = 0.0072
"""The same with compiled layers: 26 of them took 0.187 s for 3,839 tokens. Fewer tokens
were not measured."""
_LAUNCH_AGAIN = 1.67
"""Factor on these seconds where activations are recomputed: 0.435 s against 0.261 s for
929 tokens in padded passes. With compiled layers it is a guess."""


def training_speed(
    shape: Shape, gpu: Gpu, tokens: float, compiled: bool, recomputed: bool
) -> float:
    """Tokens that one GPU trains on in a second.

    Args:
        shape: of the base model.
        gpu: kind of the GPU.
        tokens: mean tokens of a pass.
        compiled: whether the decoder layers are compiled.
        recomputed: whether activations are recomputed in the backward pass.
    """
    weights = shape.linear_weights + shape.vocabulary * shape.hidden
    billions = weights / 1e9
    nearest = _nearest(billions, tokens, compiled, recomputed)
    speed = nearest.of_peak * gpu.tflops * 1e12 / _operations_per_token(billions)
    launch_seconds = _LAUNCH_SECONDS_COMPILED if compiled else _LAUNCH_SECONDS
    launch_seconds *= shape.layers
    if recomputed:
        launch_seconds *= _LAUNCH_AGAIN
    return min(speed, tokens / launch_seconds)


def _nearest(
    billions: float, tokens: float, compiled: bool, recomputed: bool
) -> Measured:
    """The measured case with the nearest model size, then the nearest pass size."""

    def distance(case: Measured) -> tuple[float, float]:
        size_ratio = case.billions / billions
        tokens_ratio = case.tokens / tokens
        return abs(math.log(size_ratio)), abs(math.log(tokens_ratio))

    cases = []
    for case in SPEEDS:
        if case.compiled == compiled and case.recomputed == recomputed:
            cases.append(case)
    return min(cases, key=distance)


def _operations_per_token(billions: float) -> float:
    """Operations that training takes for a token: six for each weight."""
    return 6e9 * billions
