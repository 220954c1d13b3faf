"""Kinds of GPU, as their makers describe them, with a rough price of a rented one."""

import re
from dataclasses import dataclass

from bezoar_ray.errors import RecipeError

ENGINE_SHARE = 0.92
"""Share of a GPU's memory that vLLM 0.29 takes by default."""
USUAL = "H100"
"""The kind that is planned where a recipe names none."""


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
    """Dollars an hour, a rough guess; `bezoar plan --cluster KIND=USD` takes your price."""


_ALL = (
    Gpu("H100", 989, 3.35, 79.1, 3.0),
    Gpu("H200", 989, 4.8, 139.7, 3.8),
    Gpu("A100", 312, 2.04, 79.1, 1.8),
    Gpu("A100-40G", 312, 1.56, 39.4, 1.2),
    Gpu("L40S", 362, 0.86, 44.4, 1.5),
    Gpu("A10G", 70, 0.6, 22.0, 1.0),
    Gpu("L4", 121, 0.3, 22.0, 0.7),
    Gpu("RTX4090", 165, 1.01, 23.6, 0.5),
    Gpu("RTX3090", 71, 0.94, 23.5, 0.3),
)
GPUS = {gpu.kind: gpu for gpu in _ALL}
"""By kind. `A100` is the one with 80 GB, `H100` the SXM module."""

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
"""The whole name of a card, as its driver gives it. A variant (PCIe, NVL, Laptop, Ti, a MIG slice) is another card."""


_RAYS_NAMES = {
    "A100-80G": "A100",
    "GeForce-RTX-4090": "RTX4090",
    "GeForce-RTX-3090": "RTX3090",
}
"""Ray's other names (`accelerator_type`) for some of them."""


def known_gpu(kind: str | None) -> Gpu | None:
    """A GPU by its kind, or by Ray's name; None where it is not known."""
    return GPUS.get(_RAYS_NAMES.get(kind or "", kind or ""))


def find_gpu(kind: str, option: str) -> Gpu:
    """The same for what `option` of the command line gives.

    Raises:
        RecipeError: no such kind is known.
    """
    if gpu := known_gpu(kind):
        return gpu
    raise RecipeError(
        f"{option} {kind}: no such kind of GPU is known; there are {', '.join(GPUS)}"
    )


def kind_of(name: str) -> str | None:
    """The kind of a GPU by its driver's name, as `NVIDIA H100 80GB HBM3`; None where it is none of `GPUS`."""
    card = name.upper().strip().removeprefix("NVIDIA ")
    return next(
        (
            kind
            for pattern, kind in _DRIVER_NAMES.items()
            if re.fullmatch(pattern, card)
        ),
        None,
    )
