"""DR-PO's reset: how much of the chosen answer an episode begins with.

Every draw depends on the seed, its purpose, the iteration and the row alone. So a
resumed training draws the same without a saved state, the draws of one purpose do not
move those of another, and the number of workers changes nothing.
"""

import random

from bezoar_ray.data.schema import row_id

_PURPOSE = "reset"


def prefix_length(
    seed: int, iteration: int, row: str, length: int, reset: float
) -> int:
    """Draw how many tokens of the chosen answer are forced (arXiv 2404.08495, 4.1).

    With probability `reset` it is uniform on 1 … `length` - 1, otherwise 0. So the
    policy always writes a token itself, at least the one that ends the answer.

    Args:
        seed: of the recipe.
        iteration: of the training.
        row: names the prompt within the iteration. Episodes of the same prompt are one
            group, and begin alike.
        length: tokens of the chosen answer, with the one that ends it.
        reset: share of episodes that begin with a prefix.

    Returns:
        0 if the answer has less than two tokens.
    """
    rng = random.Random(row_id(seed, _PURPOSE, iteration, row))
    # Both are drawn in any case: a higher share then only adds prefixes.
    is_reset = rng.random() < reset
    position = rng.random()
    if not is_reset or length < 2:
        return 0
    return 1 + int(position * (length - 1))
