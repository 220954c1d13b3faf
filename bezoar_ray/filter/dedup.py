"""Duplicates: of rows that come earlier in the order of ids, over all schemes, and of the seeds.

The order decides which row of several stays, so the result does not depend on who arrived first. Orca's queries are
seeds themselves and are not compared with seeds.
"""

import re
from collections.abc import Iterable
from typing import Any

from bezoar_ray.filter.gates import normal
from bezoar_ray.rows import Sample, Seed

_NEAR = 0.85  # Jaccard similarity of word triples, instruction and response together
_PERMUTATIONS = 128
_TRIPLE = 3
_SEED = "seed/"


def reject_exact(samples: Iterable[Sample], seeds: Iterable[Seed]) -> list[Sample]:
    """Rows that ask what an earlier one or a seed asks are rejected, before a judge is paid for them."""
    seen, seeded = set(), {normal(seed.task) for seed in seeds}
    kept = []
    for sample in sorted(samples, key=lambda sample: sample.id):
        text = normal(sample.task)
        known = text in seen or (sample.scheme != "orca" and text in seeded)
        kept.append(sample.ended("rejected", "duplicate") if known else sample)
        seen.add(text)
    return kept


def reject_near(samples: Iterable[Sample], seeds: Iterable[Seed]) -> list[Sample]:
    """Rows that say nearly the same as an earlier one or a seed are rejected: the closing pass over accepted rows."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=_NEAR, num_perm=_PERMUTATIONS)
    sketches: dict[str, Any] = {}

    def add(key: str, sketch: Any) -> None:
        sketches[key] = sketch
        index.insert(key, sketch)

    for number, seed in enumerate(seeds):
        add(f"{_SEED}{number}", _sketch(seed.task, seed.response))
    kept = []
    for sample in sorted(samples, key=lambda sample: sample.id):
        sketch = _sketch(sample.task, sample.response)
        near = [key for key in index.query(sketch) if sketch.jaccard(sketches[key]) >= _NEAR]
        known = any(sample.scheme != "orca" or not key.startswith(_SEED) for key in near)
        kept.append(sample.ended("rejected", "near_duplicate") if known else sample)
        add(sample.id, sketch)
    return kept


def _sketch(task: str, response: str) -> Any:
    """MinHash of the word triples of a row; signs count as words."""
    from datasketch import MinHash

    words = re.findall(r"\w+|[^\w\s]", f"{task}\n{response}".casefold())
    triples = {" ".join(words[i : i + _TRIPLE]).encode() for i in range(max(1, len(words) - _TRIPLE + 1))}
    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch(list(triples))
    return sketch
