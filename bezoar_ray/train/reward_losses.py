"""Losses of a reward model: regression on ratings, and Bradley-Terry on pairs."""

from typing import TYPE_CHECKING

from bezoar_ray.train.encoding import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


def squared_error(outputs: "Tensor", ratings: "Tensor") -> "Tensor":
    """Return the sum of squared errors over the ratings that exist.

    Divided by their number, it is the loss of arXiv 2406.08673: the mean is over
    ratings and not over rows.

    Args:
        outputs: of the head, shape (rows, attributes).
        ratings: same shape; -100 stands for a missing one.
    """
    import torch

    exists = ratings != IGNORED
    errors = torch.where(exists, outputs - ratings, 0.0)
    return errors.square().sum()


def bradley_terry(difference: "Tensor", strength: "Tensor", kind: str) -> "Tensor":
    """Return the loss of each pair (arXiv 2410.01257, section 4).

    Args:
        difference: the score of the chosen answer minus that of the rejected one,
            shape (pairs,).
        strength: of the preference, from 1 (slightly better) to 3, same shape.
        kind: `regular`: -ln s(d); `margin`: -ln s(d - m); `scaled`: -m ln s(d), for
            the difference d, the strength m and the logistic function s.
    """
    from torch.nn.functional import logsigmoid

    if kind == "margin":
        return -logsigmoid(difference - strength)
    loss = -logsigmoid(difference)
    if kind == "scaled":
        return strength * loss
    return loss
