"""Kinds of GPU, as their makers describe them, with a rough price of a rented one."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    tflops: float
    """Dense bfloat16 products with float32 sums, in 10^12 operations a second."""
    bandwidth: float
    """Of its memory, in TB/s."""
    memory: float
    """In GiB; of the 24 GB of an L4 or an A10G, their error correction takes some."""
    usd: float
    """An hour, by ourselves; `bezoar plan --cluster KIND=USD` takes your price."""


GPUS = {
    "H100": Gpu(989, 3.35, 80, 3.0),
    "H200": Gpu(989, 4.8, 141, 3.8),
    "A100": Gpu(312, 2.04, 80, 1.8),
    "L40S": Gpu(362, 0.86, 48, 1.5),
    "A10G": Gpu(70, 0.6, 22.5, 1.0),
    "L4": Gpu(121, 0.3, 22.5, 0.7),
    "RTX4090": Gpu(165, 1.01, 24, 0.5),
    "RTX3090": Gpu(71, 0.94, 24, 0.3),
}
"""By Ray's names, and those of two cards that Ray does not know."""


def kind_of(name: str) -> str | None:
    """The kind of a GPU by its driver's name, as `NVIDIA H100 80GB HBM3` or `NVIDIA GeForce RTX 4090`."""
    words = re.sub(r"RTX (\d)", r"RTX\1", name.upper())
    return next((kind for kind in GPUS if re.search(rf"\b{kind}\b", words)), None)
