"""Samples as text for a terminal, as `bezoar run --pilot` shows them."""

import textwrap
from collections.abc import Iterable
from itertools import islice

from bezoar_ray.data.sample_io import count_samples, iter_samples
from bezoar_ray.data.schema import Sample
from bezoar_ray.store import Store


def show(store: Store, schemes: Iterable[str], count: int = 3) -> str:
    """Format the first accepted and rejected samples of each scheme, with their reasons."""
    sections = []
    for scheme in schemes:
        for status in ("accepted", "rejected"):
            total = count_samples(store, scheme, status)
            sections.append(f"\n== {scheme}: {total} {status}")
            for sample in islice(iter_samples(store, scheme, status), count):
                sections.append(_format_sample(sample))
    return "\n".join(sections)


def _format_sample(sample: Sample) -> str:
    verdicts = [
        f"{verdict.judge} {verdict.rating or verdict.status}: {verdict.reason}"
        for verdict in sample.verdicts
    ]
    fields = {
        "instruction": sample.task,
        "response": sample.response,
        "because": "; ".join(verdicts) or sample.reason,
    }
    lines = []
    for name, text in fields.items():
        shortened = textwrap.shorten(text, 300, placeholder=" …")
        lines.append(f"{name:>12}  {shortened}")
    return "\n".join(lines)
