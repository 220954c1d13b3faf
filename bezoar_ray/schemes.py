"""The registry of generation schemes. A recipe's custom scheme becomes the same object.

A new scheme is a module in `generate/` with the functions `plan` and `run`, a section
in `recipe/generation.py`, and one entry in `SCHEMES`.
"""

from dataclasses import dataclass
from typing import Literal

SeedKind = Literal["dolly", "flan"]
CUSTOM = "own"
"""The name under which all custom schemes share a rubric and assumed token counts."""


@dataclass(frozen=True)
class Call:
    """One kind of call to the teacher, as `bezoar plan` estimates it."""

    kind: str
    per: Literal["task", "row", "candidate"]
    """What the calls are counted by; a row has one or more candidate answers."""
    tokens_in: float
    tokens_out: float


@dataclass(frozen=True)
class Scheme:
    """One way to make rows from seeds."""

    name: str
    seeds: SeedKind
    """The field of `seeds` that the scheme starts from."""
    module: str
    """The module in `generate/` with the scheme's two functions.

    `plan(name, section, recipe_seed, seeds)` yields the tasks. `run(task, chat,
    section)` is an async generator of the rows of one task. Its section is the one that
    `for_actors()` returns.
    """
    pilot_field: str
    """The field of its section that `--pilot N` sets."""
    accepted: float
    """The share of its rows that the filter accepts, for `bezoar plan`."""
    calls: tuple[Call, ...]
    rows_field: str = ""
    """The field of its section with the number of rows per task; empty for one row."""
    keeps_instruction: bool = False
    """Whether rows keep their seed's instruction, and so are not its duplicates."""


LAMINI = Scheme(
    name="lamini",
    seeds="dolly",
    module="bezoar_ray.generate.lamini",
    rows_field="per_call",
    pilot_field="calls",
    accepted=0.5,
    calls=(
        # Three short examples in, twenty instructions of 35 tokens out.
        Call("instructions", "task", 150, 700),
        Call("answer", "candidate", 60, 200),
    ),
)
EVOL_INSTRUCT = Scheme(
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
)
ORCA = Scheme(
    name="orca",
    seeds="flan",
    module="bezoar_ray.generate.orca",
    pilot_field="rows",
    accepted=0.17,  # as published, section 3 of arXiv 2404.12195
    calls=(Call("answer", "candidate", 300, 250),),
    keeps_instruction=True,
)

SCHEMES = {scheme.name: scheme for scheme in (LAMINI, EVOL_INSTRUCT, ORCA)}
"""The packaged schemes by name, in the order in which a run makes their rows."""


def custom_scheme(name: str, seeds: SeedKind) -> Scheme:
    """Return the scheme of a `generate.own` section.

    Its function is unknown, so `bezoar plan` assumes one call for each row.
    """
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
    """Whether a scheme's rows keep their seeds' instructions; custom ones do not."""
    return scheme in SCHEMES and SCHEMES[scheme].keeps_instruction
