"""Duplicates among accepted rows, over all schemes, and of the seeds.

Of rows that ask the same, the best rated stays: so the best of several candidate answers is kept (rejection sampling).
Of rows that say nearly the same, and of equally rated ones, the first in the order of ids stays; the result does not
depend on who arrived first. Orca's queries are seeds themselves and are not compared with seeds.

A row is held as a hash and a MinHash signature (datasketch), half a kilobyte; datasketch's own index of them would take
eight times as much, so candidates are found by sorting the signatures' bands (locality-sensitive hashing, as described
in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4).
"""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from bezoar_ray.data.schema import Sample, Seed, normal
from bezoar_ray.schemes import keeps_instruction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NEAR = 0.85  # Jaccard similarity of word triples, instruction and response together
_PERMUTATIONS = 128
_BANDS = 16  # of 8 values: rows as near as that share a band in 99.4 % of the cases
_TRIPLE = 3


class Duplicates:
    """Takes rows in the order of their ids and says which of them are duplicates."""

    def __init__(self, seeds: Iterable[Seed]):
        self._asked, self._signatures, self._ratings = (
            array("Q"),
            array("I"),
            array("f"),
        )
        self._fresh = bytearray()  # by row: whether it is compared with seeds
        for seed in seeds:
            self._add(seed.task, seed.response, rating=0.0, fresh=True)
        self._seeds = len(self._fresh)

    def add(self, sample: Sample) -> None:
        """The next row."""
        self._add(
            sample.task,
            sample.response,
            sample.rating,
            fresh=not keeps_instruction(sample.scheme),
        )

    def find(self) -> list[str]:
        """For each row, in order: `duplicate`, `not_best`, `near_duplicate` or nothing."""
        import numpy as np

        reasons = np.full(len(self._fresh), "", dtype="U14")
        for group in _groups(np.frombuffer(self._asked, np.uint64)):
            self._mark_same(group, reasons)
        self._mark_near(reasons)
        return reasons[self._seeds :].tolist()

    def _add(self, task: str, response: str, rating: float, fresh: bool) -> None:
        self._asked.frombytes(hashlib.sha256(normal(task).encode()).digest()[:8])
        self._signatures.frombytes(_signature(task, response))
        self._ratings.append(rating)
        self._fresh.append(fresh)

    def _mark_same(
        self, group: "NDArray[np.intp]", reasons: "NDArray[np.str_]"
    ) -> None:
        """Rows that ask the same: those that a seed asks go, of the others all but the best."""
        seeded = group[0] < self._seeds  # seeds come first
        rows = [row for row in group if row >= self._seeds]
        left = [row for row in rows if not (seeded and self._fresh[row])]
        reasons[[row for row in rows if row not in left]] = "duplicate"
        best = max(left, key=lambda row: (self._ratings[row], -row), default=-1)
        for row in left:
            if row != best:
                reasons[row] = (
                    "duplicate"
                    if self._ratings[row] == self._ratings[best]
                    else "not_best"
                )

    def _mark_near(self, reasons: "NDArray[np.str_]") -> None:
        """Rows in their order: one that is near an earlier row that stays says nothing new.

        A row that goes stands for no other: else the last of a chain, of which each is near the one before, could go
        for a row that is gone itself.
        """
        import numpy as np

        signatures = np.frombuffer(self._signatures, np.uint32).reshape(
            -1, _PERMUTATIONS
        )
        places = self._places(signatures)
        kept: dict[tuple[int, int], list[int]] = {}
        for row in sorted(places):
            if reasons[row]:
                continue
            near = sorted(
                {other for place in places[row] for other in kept.get(place, ())}
            )
            close = [
                other
                for other in near
                if (signatures[other] == signatures[row]).mean() >= _NEAR
            ]
            if row >= self._seeds and any(
                self._fresh[row] or other >= self._seeds for other in close
            ):
                reasons[row] = "near_duplicate"
                continue
            for place in places[row]:
                kept.setdefault(place, []).append(row)

    def _places(
        self, signatures: "NDArray[np.uint32]"
    ) -> dict[int, list[tuple[int, int]]]:
        """By row that shares a band with another: the bands, each with a number of those that share it."""
        places: dict[int, list[tuple[int, int]]] = {}
        width = _PERMUTATIONS // _BANDS
        for band in range(_BANDS):
            for number, group in enumerate(
                _groups(_keys(signatures[:, band * width : (band + 1) * width]))
            ):
                for row in group.tolist():
                    places.setdefault(row, []).append((band, number))
        return places


def _groups(keys: "NDArray[np.uint64]") -> "Iterator[NDArray[np.intp]]":
    """The rows of each key that more than one row has, in order."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    bounds = np.concatenate(
        ([0], np.flatnonzero(np.diff(keys[order])) + 1, [len(keys)])
    )
    for place in np.flatnonzero(np.diff(bounds) > 1):
        yield order[bounds[place] : bounds[place + 1]]


def _keys(band: "NDArray[np.uint32]") -> "NDArray[np.uint64]":
    """One number for the values of a band."""
    import numpy as np

    factors = np.random.default_rng(0).integers(
        1, 2**63, band.shape[1], dtype=np.uint64
    ) | np.uint64(1)
    return (band.astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)


def _signature(task: str, response: str) -> bytes:
    """MinHash of the word triples of a row; signs count as words."""
    import numpy as np
    from datasketch import MinHash

    words = re.findall(r"\w+|[^\w\s]", f"{task}\n{response}".casefold())
    triples = {
        " ".join(words[i : i + _TRIPLE]).encode()
        for i in range(max(1, len(words) - _TRIPLE + 1))
    }
    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch(list(triples))
    return sketch.hashvalues.astype(np.uint32).tobytes()
