"""Samples as text for a terminal: what a pilot shows before the bill."""

import textwrap
from collections.abc import Iterable
from itertools import islice

from bezoar_ray.data.sample_io import count_samples, iter_samples
from bezoar_ray.data.schema import Sample
from bezoar_ray.store import Store


def show(store: Store, schemes: Iterable[str], count: int = 3) -> str:
    """The first accepted and rejected samples of each scheme, with the judges' reasons."""
    lines = []
    for scheme in schemes:
        for status in ("accepted", "rejected"):
            lines.append(
                f"\n== {scheme}: {count_samples(store, scheme, status)} {status}"
            )
            lines += map(_block, islice(iter_samples(store, scheme, status), count))
    return "\n".join(lines)


def _block(sample: Sample) -> str:
    why = (
        "; ".join(
            f"{v.judge} {v.rating or v.status}: {v.reason}" for v in sample.verdicts
        )
        or sample.reason
    )
    parts = {"instruction": sample.task, "response": sample.response, "because": why}
    return "\n".join(
        f"{name:>12}  {textwrap.shorten(text, 300, placeholder=' …')}"
        for name, text in parts.items()
    )
