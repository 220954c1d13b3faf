"""How large a forward pass is, and whether its activations are recomputed: what the recipe asks, and what fits.

`bezoar plan` asks it with an estimate of what fits, training with a real pass (fitting.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bezoar_ray.recipe import Training

AUTO_TOKENS = 16_384
"""Tokens of the largest pass that `micro_tokens: auto` tries; larger ones gained nothing on an H200."""
ENOUGH_TOKENS = 4_096
"""Tokens of a pass from which on recomputing activations costs more than a larger pass gains."""
SPARE = 0.05
"""Share of a GPU's memory that training leaves to fragments."""
_CPU_ROWS = 4  # of a pass on a CPU, where the recipe says nothing: its speed hardly depends on the size


@dataclass(frozen=True)
class PassSize:
    """How much goes into a forward pass of one worker: at most so many rows, or at most so many tokens.

    Tokens are those of the rows, or, in a padded layout, of the rectangle that they fill. A row that is longer than
    that is a pass by itself.
    """

    rows: int | None = None
    tokens: int | None = None

    def __str__(self) -> str:
        return f"{self.rows} rows" if self.rows else f"{self.tokens:,} tokens"

    def at_most(self, row: int, share: int) -> int:
        """Tokens of the largest such pass, where the longest row has `row` tokens and a step `share` rows."""
        if self.rows:
            return row * min(share, self.rows)
        return min(max(row, self.tokens or 0), share * row)

    def smaller(self, row: int) -> Iterator["PassSize"]:
        """This size, its half, and so on, down to a single row of `row` tokens."""
        if self.rows:
            rows = self.rows
            while rows >= 1:
                yield PassSize(rows=rows)
                rows //= 2
            return
        tokens = self.tokens or 0
        while tokens > row:
            yield PassSize(tokens=tokens)
            tokens //= 2
        yield PassSize(tokens=row)


def wanted_size(part: Training) -> PassSize | None:
    """The size of a pass that the recipe names; None where it leaves the choice to what fits."""
    if part.micro_batch:
        return PassSize(rows=part.micro_batch)
    if isinstance(part.micro_tokens, int):
        return PassSize(tokens=part.micro_tokens)
    if part.zero_stage == 3 or not (part.micro_tokens or part.gpus_per_worker):
        return PassSize(rows=_CPU_ROWS)
    return None


def choose_size(
    part: Training, row: int, fits: Callable[[PassSize, bool], bool]
) -> tuple[PassSize, bool] | None:
    """The largest pass that fits, of those that the recipe allows, and whether its activations are recomputed.

    Left to choose, activations are recomputed only where otherwise no pass would fit that keeps a GPU busy.

    Args:
        part: the recipe's wishes.
        row: tokens of the longest row, both sides of a pair.
        fits: whether a pass of a size does, with its activations recomputed or kept.

    Returns:
        None where not even a single row fits.
    """
    wanted = wanted_size(part)
    largest = wanted or PassSize(tokens=max(row, min(AUTO_TOKENS, part.share * row)))
    least = largest.at_most(row, part.share)
    if not wanted:
        least = min(least, ENOUGH_TOKENS)
    if part.gradient_checkpointing is not True:
        for size in largest.smaller(row):
            large = size.at_most(row, part.share) >= least
            if (large or part.gradient_checkpointing is False) and fits(size, False):
                return size, False
    if part.gradient_checkpointing is not False:
        for size in largest.smaller(row):
            if fits(size, True):
                return size, True
    return None
