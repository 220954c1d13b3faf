"""Rows in the shape of databricks-dolly-15k: instruction, context, response, category."""

import re
from typing import Any

from bezoar_ray.rows import Seed
from bezoar_ray.sources.raw import Origin, required, text

_CITATION = re.compile(r"\[\d+\]")  # contexts come from Wikipedia, with its marks


def seed(row: dict[str, Any], origin: Origin) -> Seed:
    """One seed. Raises `ValueError` for a missing or empty instruction, or a field that is not text."""
    return Seed(
        id=origin.id("dolly"),
        source=origin.source,
        license=origin.license,
        instruction=required(row, "instruction"),
        input=_CITATION.sub("", text(row, "context")),
        response=text(row, "response"),
        category=text(row, "category"),
    )
