"""Samples as text for a terminal: what a pilot shows before the bill."""

import textwrap

from bezoar_ray.recipe import SCHEMES
from bezoar_ray.rows import Sample, sample_schema
from bezoar_ray.store import Store


def show(store: Store, count: int = 3) -> str:
    """The first accepted and rejected samples of each scheme, with the judges' reasons."""
    lines = []
    for scheme in SCHEMES:
        for status in ("accepted", "rejected"):
            table = store.read_table(f"data/{scheme}/{status}", sample_schema())
            lines.append(f"\n== {scheme}: {table.num_rows} {status}")
            lines += [_block(Sample.from_row(row)) for row in table.slice(0, count).to_pylist()]
    return "\n".join(lines)


def _block(sample: Sample) -> str:
    why = "; ".join(f"{v.judge} {v.rating or v.status}: {v.reason}" for v in sample.verdicts) or sample.reason
    parts = {"instruction": sample.task, "response": sample.response, "because": why}
    return "\n".join(
        textwrap.shorten(f"{name:>12}  {text}", 300, placeholder=" …").rjust(0) for name, text in parts.items()
    )
