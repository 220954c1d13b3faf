"""Duplicates among accepted rows of all schemes, and duplicates of the seeds.

Of rows with the same instruction, the best rated one stays. So the best of several
candidate answers is kept (rejection sampling). Of rows that are nearly the same, and of
rows with equal ratings, the first in the order of ids stays: the result does not depend
on the order of arrival. Orca's queries are seeds themselves, so they are not compared
with seeds.

A row is kept as a hash and a MinHash signature (datasketch), half a kilobyte. Its
own index would take eight times as much memory, so candidates are found by sorting
the bands of the signatures (locality-sensitive hashing, as in Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, section 3.4).
"""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from bezoar_ray.data.schema import Sample, Seed, normalize
from bezoar_ray.schemes import keeps_instruction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NEAR = 0.85
"""Jaccard similarity of the word triples of instruction and response together."""
_PERMUTATIONS = 128
_BANDS = 16
"""Bands of 8 values. Rows as near as `_NEAR` share a band in 99.4 % of the cases."""
_TRIPLE = 3

Bucket = tuple[int, int]
"""A band, and the number of a value that several rows have in it."""


class Duplicates:
    """Takes rows in the order of their ids, and finds the duplicates among them."""

    def __init__(self, seeds: Iterable[Seed]):
        # One entry for each row, the seeds first. Arrays take less memory than lists.
        self._instruction_hashes = array("Q")
        self._signatures = array("I")
        self._ratings = array("f")
        self._compared_with_seeds = bytearray()
        for seed in seeds:
            self._add(seed.task, seed.response, 0.0, compared_with_seeds=True)
        self._seed_count = len(self._ratings)

    def add(self, sample: Sample) -> None:
        """Add the next row."""
        self._add(
            sample.task,
            sample.response,
            sample.rank,
            compared_with_seeds=not keeps_instruction(sample.scheme),
        )

    def find(self) -> list[str]:
        """Return why each row is a duplicate, in order.

        Returns:
            `duplicate`, `not_best` or `near_duplicate`, or an empty text for a row that
            is not a duplicate.
        """
        import numpy as np

        reasons = np.full(len(self._ratings), "", dtype="U14")
        hashes = np.frombuffer(self._instruction_hashes, np.uint64)
        for group in _groups(hashes):
            self._mark_same(group, reasons)
        self._mark_near(reasons)
        return reasons[self._seed_count :].tolist()

    def _add(
        self, task: str, response: str, rating: float, compared_with_seeds: bool
    ) -> None:
        digest = hashlib.sha256(normalize(task).encode()).digest()
        # With 64 bits, a million rows have a chance of 3e-8 of a false duplicate.
        self._instruction_hashes.frombytes(digest[:8])
        self._signatures.frombytes(_signature(task, response))
        self._ratings.append(rating)
        self._compared_with_seeds.append(compared_with_seeds)

    def _mark_same(
        self, group: "NDArray[np.intp]", reasons: "NDArray[np.str_]"
    ) -> None:
        """Mark rows with the same instruction: a seed's, and all but the best one."""
        is_seeded = group[0] < self._seed_count  # seeds come first
        rows = [row for row in group if row >= self._seed_count]
        remaining = []
        for row in rows:
            if is_seeded and self._compared_with_seeds[row]:
                reasons[row] = "duplicate"
            else:
                remaining.append(row)
        if not remaining:
            return
        best = max(remaining, key=lambda row: (self._ratings[row], -row))
        for row in remaining:
            if row == best:
                continue
            has_best_rating = self._ratings[row] == self._ratings[best]
            reasons[row] = "duplicate" if has_best_rating else "not_best"

    def _mark_near(self, reasons: "NDArray[np.str_]") -> None:
        """Mark rows that are near an earlier row that stays.

        A marked row is not compared with later ones. In a chain where each row is near
        the one before it, the last row would otherwise go for a row that is gone.
        """
        import numpy as np

        signatures = np.frombuffer(self._signatures, np.uint32)
        signatures = signatures.reshape(-1, _PERMUTATIONS)
        buckets_of = self._find_buckets(signatures)
        kept: dict[Bucket, list[int]] = {}
        for row in sorted(buckets_of):
            if reasons[row]:
                continue
            candidates: set[int] = set()
            for bucket in buckets_of[row]:
                candidates.update(kept.get(bucket, ()))
            if self._is_near(row, candidates, signatures):
                reasons[row] = "near_duplicate"
                continue
            for bucket in buckets_of[row]:
                kept.setdefault(bucket, []).append(row)

    def _is_near(
        self, row: int, candidates: set[int], signatures: "NDArray[np.uint32]"
    ) -> bool:
        """Return whether a row is near a candidate with which it is compared."""
        if row < self._seed_count:
            return False
        for other in candidates:
            is_seed = other < self._seed_count
            if is_seed and not self._compared_with_seeds[row]:
                continue
            if (signatures[other] == signatures[row]).mean() >= _NEAR:
                return True
        return False

    def _find_buckets(
        self, signatures: "NDArray[np.uint32]"
    ) -> dict[int, list[Bucket]]:
        """Return the buckets of each row that shares one with another row."""
        buckets_of: dict[int, list[Bucket]] = {}
        width = _PERMUTATIONS // _BANDS
        for band in range(_BANDS):
            values = signatures[:, band * width : (band + 1) * width]
            for number, group in enumerate(_groups(_keys(values))):
                for row in group.tolist():
                    buckets_of.setdefault(row, []).append((band, number))
        return buckets_of


def _groups(keys: "NDArray[np.uint64]") -> "Iterator[NDArray[np.intp]]":
    """Yield the rows of each key that several rows have, in the order of the rows."""
    import numpy as np

    # Stable, so that rows of a group stay in the order of their ids.
    order = np.argsort(keys, kind="stable")
    # Where the key changes in sorted order: the bounds of the groups.
    changes = np.flatnonzero(np.diff(keys[order])) + 1
    bounds = np.concatenate(([0], changes, [len(keys)]))
    for group in np.flatnonzero(np.diff(bounds) > 1):
        yield order[bounds[group] : bounds[group + 1]]


def _keys(band: "NDArray[np.uint32]") -> "NDArray[np.uint64]":
    """Return one number for the values of each row.

    Args:
        band: The values of one band, of shape (rows, values).
    """
    import numpy as np

    rng = np.random.default_rng(0)
    factors = rng.integers(1, 2**63, band.shape[1], dtype=np.uint64)
    # An odd factor keeps all bits of a value. Bands that collide nevertheless only cost
    # a comparison of signatures.
    odd_factors = factors | np.uint64(1)
    return (band.astype(np.uint64) * odd_factors).sum(axis=1, dtype=np.uint64)


def _signature(task: str, response: str) -> bytes:
    """Return the MinHash of the word triples of a row. Punctuation marks are words."""
    import numpy as np
    from datasketch import MinHash

    words = re.findall(r"\w+|[^\w\s]", f"{task}\n{response}".casefold())
    count = max(1, len(words) - _TRIPLE + 1)
    triples = {
        " ".join(words[start : start + _TRIPLE]).encode() for start in range(count)
    }
    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch(list(triples))
    # datasketch keeps hashes of 32 bits in 64-bit numbers.
    return sketch.hashvalues.astype(np.uint32).tobytes()
