"""Rows in the format of the FLAN collection's dumps.

Their fields are inputs, targets, task_source, task_name and template_type.
"""

from bezoar_ray.data.schema import Seed
from bezoar_ray.sources.record import Origin, Row, required

_MIXTURES = {
    "p3": "T0",
    "t0": "T0",
    "niv2": "NIV2",
    "flan2021": "Flan2021",
    "cot": "CoT",
    "dialog": "Dialog",
}
"""The Orca paper's name of a sub-mixture for each name in the public dumps."""
_TEMPLATES = ("zs_opt", "zs_noopt", "fs_opt", "fs_noopt")


def seed(row: Row, origin: Origin) -> Seed:
    """Convert a row to a seed: a query with the answer that FLAN has for it.

    Raises:
        ValueError: a field is missing, empty or unknown.
    """
    template = required(row, "template_type")
    if template not in _TEMPLATES:
        raise ValueError(
            f"`template_type` is {template!r}, not one of {', '.join(_TEMPLATES)}"
        )
    return Seed(
        id=origin.id("flan"),
        source=origin.source,
        license=origin.license,
        instruction=required(row, "inputs"),
        response=required(row, "targets"),
        task_source=_mixture(required(row, "task_source")),
        task_name=required(row, "task_name"),
        template_type=template,
    )


def _mixture(task_source: str) -> str:
    mixture = _MIXTURES.get(task_source.lower())
    if mixture is None:
        raise ValueError(
            f"`task_source` is {task_source!r}, not one of CoT, NIv2, Flan2021, "
            "P3 (or T0), Dialog"
        )
    return mixture
