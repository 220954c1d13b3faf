"""The size of a forward pass, and whether its activations are recomputed.

Both follow from the recipe and from the memory. `bezoar plan` uses an estimate of what
fits in memory; training uses a real pass (`fitting.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bezoar_ray.recipe import Training

AUTO_TOKENS = 16_384
"""Tokens of the largest pass that `micro_tokens: auto` tries; larger ones gained
nothing on an H200."""
ENOUGH_TOKENS = 4_096
"""From this many tokens in a pass on, recomputing activations costs more than a larger
pass gains."""
SPARE = 0.05
"""Share of a GPU's memory that training leaves free for fragmentation."""
_CPU_ROWS = 4
"""Default rows of a pass on a CPU, where speed hardly depends on the size."""


@dataclass(frozen=True)
class PassSize:
    """The limit of one worker's forward pass, either in rows or in tokens.

    Tokens are those of the rows or, in a padded layout, of the rectangle that they
    fill. A row that is longer than the limit is a pass by itself.
    """

    rows: int | None = None
    tokens: int | None = None

    def __str__(self) -> str:
        if self.rows:
            return f"{self.rows} rows"
        return f"{self.tokens:,} tokens"

    def at_most(self, row: int, share: int) -> int:
        """Return the tokens of the largest pass of this size.

        Args:
            row: tokens of the longest row.
            share: rows of an optimizer step on one worker.
        """
        if self.rows:
            return row * min(share, self.rows)
        tokens = max(row, self.tokens or 0)
        return min(tokens, share * row)

    def smaller(self, row: int) -> Iterator["PassSize"]:
        """Yield this size, its half, and so on, down to one row of `row` tokens."""
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


def wanted_size(section: Training) -> PassSize | None:
    """Return the size that the recipe sets, or None if the memory decides."""
    if section.micro_batch:
        return PassSize(rows=section.micro_batch)
    if isinstance(section.micro_tokens, int):
        return PassSize(tokens=section.micro_tokens)
    # Under ZeRO-3 no pass can be tried before training.
    if section.zero_stage == 3:
        return PassSize(rows=_CPU_ROWS)
    if not section.micro_tokens and not section.gpus_per_worker:
        return PassSize(rows=_CPU_ROWS)
    return None


def choose_size(
    section: Training, row: int, fits: Callable[[PassSize, bool], bool]
) -> tuple[PassSize, bool] | None:
    """Return the largest pass that fits, and whether its activations are recomputed.

    With `gradient_checkpointing: auto`, activations are recomputed only if otherwise no
    pass that keeps a GPU busy would fit.

    Args:
        section: the stage's section of the recipe.
        row: tokens of the longest row; of a pair, those of both sides.
        fits: tells whether a pass of a size fits, with its activations recomputed
            (True) or kept (False).

    Returns:
        None if not even a single row fits.
    """
    wanted = wanted_size(section)
    if wanted:
        largest = wanted
        enough = largest.at_most(row, section.share)
    else:
        step_tokens = section.share * row
        largest = PassSize(tokens=max(row, min(AUTO_TOKENS, step_tokens)))
        enough = min(largest.at_most(row, section.share), ENOUGH_TOKENS)
    if section.gradient_checkpointing is not True:
        for size in largest.smaller(row):
            is_enough = size.at_most(row, section.share) >= enough
            allowed = is_enough or section.gradient_checkpointing is False
            if allowed and fits(size, False):
                return size, False
    if section.gradient_checkpointing is not False:
        for size in largest.smaller(row):
            if fits(size, True):
                return size, True
    return None
