"""Rows in the shape of databricks-dolly-15k: instruction, context, response, category."""

import re

from bezoar_ray.data.schema import Seed
from bezoar_ray.sources.record import Origin, Row, required, text

_CITATION = re.compile(
    r"\[\d+\]"
)  # dolly's contexts come from Wikipedia, with its marks; own ones may be code


def seed(row: Row, origin: Origin) -> Seed:
    """One seed. Raises `ValueError` for a missing or empty instruction, or a field that is not text."""
    context = text(row, "context")
    return Seed(
        id=origin.id("dolly"),
        source=origin.source,
        license=origin.license,
        instruction=required(row, "instruction"),
        input=_CITATION.sub("", context)
        if "dolly" in origin.source.lower()
        else context,
        response=text(row, "response"),
        category=text(row, "category"),
    )
