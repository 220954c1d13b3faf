"""Rows in the format of databricks-dolly-15k.

Their fields are instruction, context, response and category.
"""

import re

from bezoar_ray.data.schema import Seed
from bezoar_ray.sources.record import Origin, Row, required, text

# Dolly's contexts come from Wikipedia, with its citation marks, such as [12].
_CITATION = re.compile(r"\[\d+\]")


def seed(row: Row, origin: Origin) -> Seed:
    """Convert a row to a seed.

    Raises:
        ValueError: the instruction is missing or empty, or a field is not text.
    """
    context = text(row, "context")
    if "dolly" in origin.source.lower():
        # Only there: in other rows such brackets may be code.
        context = _CITATION.sub("", context)
    return Seed(
        id=origin.id("dolly"),
        source=origin.source,
        license=origin.license,
        instruction=required(row, "instruction"),
        input=context,
        response=text(row, "response"),
        category=text(row, "category"),
    )
