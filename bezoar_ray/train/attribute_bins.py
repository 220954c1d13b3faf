"""The probability that an answer has a goal's attributes, from its predicted ratings.

SteerLM 2.0 (arXiv 2406.08673) reads a reward model's output as the mean of a Beta
distribution over [0, 4]. The distribution is cut into five bins, one for each rating
from 0 to 4.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bezoar_ray.data.schema import ATTRIBUTES, HIGHEST_RATING
from bezoar_ray.recipe.steering import Edges, Goal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

BIN_EDGES: dict[Edges, tuple[float, ...]] = {
    "rounding": (0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1),
    "fifths": (0, 1 / 5, 2 / 5, 3 / 5, 4 / 5, 1),
}
"""Edges of the five bins, as shares of the highest rating.

The paper does not print them. With `rounding`, a bin holds what rounds to its rating,
and the mean of the bins is near the predicted rating: 3.15 for 3.2. With `fifths`, it
is 3.53.
"""

_CONCENTRATION = 24.0
"""alpha + beta, which the authors chose to match the spread of the training labels."""
_MARGIN = 1e-3
"""Distance of the mean from 0 and 1, where one parameter of the distribution would be
0. It also bounds the log-probability of a bin, which is never below -57."""


def bin_log_probabilities(
    predicted: "ArrayLike", edges: Edges = "rounding"
) -> "NDArray[np.float64]":
    """Return ln P(a = n) of each rating n from 0 to 4.

    Args:
        predicted: ratings by the reward model, of any shape. Outside of 0 to 4 they
            count as 0 or 4.
        edges: a key of `BIN_EDGES`.

    Returns:
        Shape of `predicted`, with a last axis of 5.
    """
    import numpy as np
    from scipy.special import betainc, betaincc

    share = np.asarray(predicted, dtype=np.float64) / HIGHEST_RATING
    mean = np.clip(share, _MARGIN, 1 - _MARGIN)[..., np.newaxis]
    alpha = _CONCENTRATION * mean
    beta = _CONCENTRATION - alpha
    bounds = np.array(BIN_EDGES[edges])
    lower = bounds[:-1]
    upper = bounds[1:]
    # A bin is a difference of two tails. In the tail on the other side of the mean, both
    # are 1 but for a rest that is lost in rounding, and the logarithm would be -inf.
    from_left = betainc(alpha, beta, upper) - betainc(alpha, beta, lower)
    from_right = betaincc(alpha, beta, lower) - betaincc(alpha, beta, upper)
    probabilities = np.where(lower > mean, from_right, from_left)
    return np.log(probabilities)


def goal_log_probabilities(
    predicted: "ArrayLike", goals: Sequence[Goal], edges: Edges = "rounding"
) -> "NDArray[np.float64]":
    """Return ln P(a | x, y) of each answer: how likely it has what its goal names.

    The attributes are taken as independent, which the paper does not say.

    Args:
        predicted: ratings of the answers by the reward model, shape (answers, 5), in
            the order of `ATTRIBUTES`.
        goals: a goal for each answer.
        edges: a key of `BIN_EDGES`.

    Returns:
        Shape (answers,).
    """
    import numpy as np

    log_probabilities = bin_log_probabilities(predicted, edges)
    joint = np.zeros(len(goals))
    for answer, goal in enumerate(goals):
        for column, attribute in enumerate(ATTRIBUTES):
            if attribute in goal:
                joint[answer] += log_probabilities[answer, column, goal[attribute]]
    return joint
