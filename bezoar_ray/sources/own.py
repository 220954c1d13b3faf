"""Rows of one's own for sft: an instruction and its answer, named as in dolly, Alpaca or our own samples."""

from typing import Any

from bezoar_ray.rows import Sample
from bezoar_ray.sources.raw import Origin, required, text

_INPUTS, _ANSWERS = ("input", "context"), ("response", "output", "answer")


def sample(scheme: str, row: dict[str, Any], origin: Origin) -> Sample:
    """One row. Raises `ValueError` for a missing or empty instruction or answer, or a field that is not text."""
    return Sample(
        id=origin.id(f"own.{scheme}"),
        scheme=scheme,
        operation="own",
        system=text(row, "system"),
        instruction=required(row, "instruction"),
        input=text(row, _first(_INPUTS, row)),
        response=required(row, _first(_ANSWERS, row)),
        seed_sources=[origin.source],
        seed_licenses=[origin.license],
        status="accepted",
    )


def _first(names: tuple[str, ...], row: dict[str, Any]) -> str:
    return next((name for name in names if name in row), names[0])
