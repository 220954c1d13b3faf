"""The rows that people see: a stratified sample, the same in every session.

Rows are drawn from strata in turn, so that rare ones are seen, too. Where all rows of a
run are meant, each reviewed row stands for the rows of its stratum.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bezoar_ray.data.sample_io import iter_samples
from bezoar_ray.data.schema import Sample, row_id
from bezoar_ray.recipe import Recipe
from bezoar_ray.store import Store

STATUSES = ("accepted", "rejected", "failed")
_TURNS_OF_RATED = 3
"""Rows that a stratum with verdicts gives in a turn. One without verdicts, which says
nothing of the judge, gives a single one."""


class Stratum(NamedTuple):
    """Rows that are alike in what the filter says of them."""

    scheme: str
    gate: str
    """The gate or judge that took the row; empty for an accepted one."""
    verdicts: tuple[str, ...]
    """The status of each judge's verdict. Judges disagree where they differ."""
    is_near: bool
    """Whether the rating is near the threshold: at it, or less than a point above, or
    up to a point below."""


def stratum_of(sample: Sample, accept_rating: float) -> Stratum:
    """Return the stratum of a row."""
    verdicts = tuple(verdict.status for verdict in sample.verdicts)
    is_near = bool(sample.rating) and -1 <= sample.rating - accept_rating < 1
    return Stratum(sample.scheme, sample.gate, verdicts, is_near)


def iter_reviewable(store: Store, recipe: Recipe) -> Iterator[Sample]:
    """Yield the rows that a person can judge, with a few hundred in memory.

    A row that failed before it had a response is left out, and so is one whose texts
    are a person's already.
    """
    for scheme in recipe.schemes:
        for status in STATUSES:
            for sample in iter_samples(store, scheme, status):
                is_whole = sample.instruction.strip() and sample.response.strip()
                if is_whole and sample.person != "edited":
                    yield sample


def draw_rows(
    samples: Iterable[Sample], seed: int, accept_rating: float, count: int
) -> list[Sample]:
    """Draw rows from all strata in turn, until there are enough.

    Within a stratum, the draw is by a hash of seed and id. At most `count` rows of each
    stratum are in memory.

    Args:
        samples: the rows.
        seed: of the recipe. Another seed draws other rows.
        accept_rating: the rating from which a judge accepts a row.
        count: how many rows to draw.
    """
    by_stratum: dict[Stratum, list[tuple[str, Sample]]] = defaultdict(list)
    for sample in samples:
        first = by_stratum[stratum_of(sample, accept_rating)]
        insort(first, (row_id(seed, "review", sample.id), sample), key=_draw_of)
        del first[count:]
    turns = []
    for stratum, first in by_stratum.items():
        per_turn = _TURNS_OF_RATED if stratum.verdicts else 1
        for index, (draw, sample) in enumerate(first):
            turns.append((index // per_turn, draw, sample))
    turns.sort(key=lambda entry: entry[:2])
    return [sample for _, _, sample in turns[:count]]


def _draw_of(entry: tuple[str, Sample]) -> str:
    return entry[0]
