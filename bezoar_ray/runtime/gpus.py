"""Kinds of GPU, as their makers describe them, with a rough price of a rented one."""

import re
from dataclasses import dataclass

from bezoar_ray.errors import RecipeError

ENGINE_SHARE = 0.92
"""Share of a GPU's memory that vLLM 0.29 takes by default."""
USUAL = "H100"
"""The kind that `bezoar plan` assumes where a recipe names none."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    kind: str
    tflops: float
    """Dense bfloat16 products with float32 sums, in 10^12 operations a second."""
    bandwidth: float
    """Memory bandwidth in TB/s."""
    memory: float
    """GiB that torch reports, which is less than the card's name promises."""
    usd: float
    """Dollars an hour, a rough guess; `bezoar plan --cluster KIND=USD` takes yours."""


_ALL = (
    Gpu("H100", tflops=989, bandwidth=3.35, memory=79.1, usd=3.0),
    Gpu("H200", tflops=989, bandwidth=4.8, memory=139.7, usd=3.8),
    Gpu("A100", tflops=312, bandwidth=2.04, memory=79.1, usd=1.8),
    Gpu("A100-40G", tflops=312, bandwidth=1.56, memory=39.4, usd=1.2),
    Gpu("L40S", tflops=362, bandwidth=0.86, memory=44.4, usd=1.5),
    Gpu("A10G", tflops=70, bandwidth=0.6, memory=22.0, usd=1.0),
    Gpu("L4", tflops=121, bandwidth=0.3, memory=22.0, usd=0.7),
    Gpu("RTX4090", tflops=165, bandwidth=1.01, memory=23.6, usd=0.5),
    Gpu("RTX3090", tflops=71, bandwidth=0.94, memory=23.5, usd=0.3),
)
GPUS = {gpu.kind: gpu for gpu in _ALL}
"""All of them by kind. `A100` is the one with 80 GB, `H100` the SXM module."""

_DRIVER_NAMES = {
    r"H100( 80GB HBM3| SXM5)?": "H100",
    r"H200": "H200",
    r"A100([- ]SXM4?|[- ]PCIE)?[- ]80GB( PCIE)?": "A100",
    r"A100([- ]SXM4?|[- ]PCIE)?[- ]40GB( PCIE)?": "A100-40G",
    r"L40S": "L40S",
    r"A10G": "A10G",
    r"L4": "L4",
    r"GEFORCE RTX 4090": "RTX4090",
    r"GEFORCE RTX 3090": "RTX3090",
}
"""Patterns of the whole name of a card, as its driver gives it.

A variant (PCIe, NVL, Laptop, Ti, a MIG slice) is another card.
"""


_RAY_NAMES = {
    "A100-80G": "A100",
    "GeForce-RTX-4090": "RTX4090",
    "GeForce-RTX-3090": "RTX3090",
}
"""Ray's names (`accelerator_type`) for those kinds whose name differs."""


def known_gpu(kind: str | None) -> Gpu | None:
    """Return a GPU by its kind or by Ray's name; None where it is not known."""
    name = kind or ""
    return GPUS.get(_RAY_NAMES.get(name, name))


def find_gpu(kind: str, option: str) -> Gpu:
    """Return the GPU that an option of the command line names.

    Raises:
        RecipeError: No such kind is known.
    """
    gpu = known_gpu(kind)
    if gpu is None:
        kinds = ", ".join(GPUS)
        raise RecipeError(
            f"{option} {kind}: no such kind of GPU is known; there are {kinds}"
        )
    return gpu


def kind_of(name: str) -> str | None:
    """Return the kind of a GPU by its driver's name; None where it is not in `GPUS`.

    Args:
        name: As in `NVIDIA H100 80GB HBM3`.
    """
    card = name.upper().strip().removeprefix("NVIDIA ")
    for pattern, kind in _DRIVER_NAMES.items():
        if re.fullmatch(pattern, card):
            return kind
    return None
