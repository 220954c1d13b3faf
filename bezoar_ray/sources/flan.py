"""Rows in the shape of the FLAN collection's dumps: inputs, targets, task_source, task_name, template_type."""

from bezoar_ray.data.schema import Seed
from bezoar_ray.sources.record import Origin, Row, required

_NAMES = {
    "p3": "T0",
    "t0": "T0",
    "niv2": "NIV2",
    "flan2021": "Flan2021",
    "cot": "CoT",
    "dialog": "Dialog",
}
_TEMPLATES = ("zs_opt", "zs_noopt", "fs_opt", "fs_noopt")


def seed(row: Row, origin: Origin) -> Seed:
    """One query under the papers' name of its sub-mixture. Raises `ValueError`, also for empty `targets`."""
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


def _mixture(found: str) -> str:
    name = _NAMES.get(found.lower())
    if name is None:
        raise ValueError(
            f"`task_source` is {found!r}, not one of CoT, NIv2, Flan2021, P3 (or T0), Dialog"
        )
    return name
