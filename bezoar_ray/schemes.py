"""The registry of generation schemes. A custom scheme of a recipe becomes the same object.

A new scheme is a module in `generate/` with the functions `plan` and `run`, a section in `recipe/generation.py`, and
one entry here.
"""

from dataclasses import dataclass
from typing import Literal

SeedKind = Literal["dolly", "flan"]
CUSTOM = "own"
"""What custom schemes have in common stands under this name: rubric and assumed tokens."""


@dataclass(frozen=True)
class Call:
    """One kind of call to the teacher, for `bezoar plan`."""

    kind: str
    per: Literal["task", "row", "candidate"]
    """How often it is made: once a task, once a row, or once for each candidate answer of a row."""
    tokens_in: float
    tokens_out: float


@dataclass(frozen=True)
class Scheme:
    """One way to make rows from seeds."""

    name: str
    seeds: SeedKind
    """The field of `seeds` that it starts from."""
    module: str
    """The module in `generate/` with its two functions.

    `plan(name, section, recipe_seed, seeds)` yields the scheme's tasks.
    `run(task, chat, section)` is an async generator of the rows of one task. Its `section` is that of `for_actors()`.
    """
    pilot_field: str
    """The field of its section that `--pilot N` sets."""
    accepted: float
    """The share of its rows that the filter accepts, for `bezoar plan`."""
    calls: tuple[Call, ...]
    rows_field: str = ""
    """The field of its section that says how many rows a task gives; one row where empty."""
    keeps_instruction: bool = False
    """Whether a row's instruction is that of its seed, so that it does not count as a duplicate of it."""


def _by_name(*schemes: Scheme) -> dict[str, Scheme]:
    return {scheme.name: scheme for scheme in schemes}


SCHEMES = _by_name(
    Scheme(
        name="lamini",
        seeds="dolly",
        module="bezoar_ray.generate.lamini",
        rows_field="per_call",
        pilot_field="calls",
        accepted=0.5,
        calls=(
            Call(
                "instructions", "task", 150, 700
            ),  # three short examples; twenty instructions of 35 tokens
            Call("answer", "candidate", 60, 200),
        ),
    ),
    Scheme(
        name="evol_instruct",
        seeds="dolly",
        module="bezoar_ray.generate.evol_instruct",
        rows_field="epochs",
        pilot_field="seeds",
        accepted=0.68,  # as published, section 3 of arXiv 2404.12195
        calls=(
            Call("rewrite", "row", 250, 120),
            Call("comparison", "row", 300, 5),
            Call("answer", "candidate", 150, 350),
        ),
    ),
    Scheme(
        name="orca",
        seeds="flan",
        module="bezoar_ray.generate.orca",
        pilot_field="rows",
        accepted=0.17,  # as published, section 3 of arXiv 2404.12195
        calls=(Call("answer", "candidate", 300, 250),),
        keeps_instruction=True,
    ),
)
"""By name, in the order in which a run makes them."""


def custom_scheme(name: str, seeds: SeedKind) -> Scheme:
    """A scheme of the recipe's own. Nothing is known of it, so a plan takes one call for each row."""
    return Scheme(
        name=name,
        seeds=seeds,
        module="bezoar_ray.generate.custom_scheme",
        rows_field="rows_per_work",
        pilot_field="works",
        accepted=0.5,
        calls=(Call("answer", "candidate", 200, 250),),
    )


def keeps_instruction(scheme: str) -> bool:
    """Whether a scheme's rows have the instructions of their seeds; a custom scheme's rows have their own."""
    return scheme in SCHEMES and SCHEMES[scheme].keeps_instruction
