"""The weights and the loss of SteerLM 2.0 (arXiv 2406.08673).

A steered model Q(y | a, x) learns to answer a prompt x with the attributes a. Its target
is P(y | a, x), in proportion to P(a | x, y) P(y | x): how likely an answer has the
attributes, times how likely it is without a goal. A group is the answers to one prompt
that were sampled from an earlier steered model, the sampler Q'.

Log-probabilities are sums over an answer's tokens. All tensors have the shape (groups,
answers), and one group is a row of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ABSENT = 1e4
"""Minus ln w' of an answer that a group lacks, and its ln Q'. Both weights are then 0,
and no infinity enters a difference."""


def target_log_weights(goal: "Tensor", plain: "Tensor", sampler: "Tensor") -> "Tensor":
    """Return ln w', the share of each answer in its group under the target.

    Args:
        goal: ln P(a | x, y).
        plain: ln P(y | x), of the model that knows no attributes.
        sampler: ln Q'(y | a, x).
    """
    return (goal + plain - sampler).log_softmax(dim=-1)


def policy_log_weights(policy: "Tensor", sampler: "Tensor") -> "Tensor":
    """Return ln b', the share of each answer in its group under the trained model.

    Args:
        policy: ln Q(y | a, x).
        sampler: ln Q'(y | a, x).
    """
    return (policy - sampler).log_softmax(dim=-1)


def distance(target: "Tensor", policy: "Tensor") -> "Tensor":
    """Return D = sum of w' ln(w' / b') of each group: 0 where the target is reached.

    Its gradient by ln Q is b' - w'.

    Args:
        target: ln w'.
        policy: ln b'.
    """
    return (target.exp() * (target - policy)).sum(dim=-1)


def group_loss(
    target: "Tensor", policy: "Tensor", log_probabilities: "Tensor", tokens: "Tensor"
) -> "Tensor":
    """Return the loss of each group: the sum of (b' - w') ln Q, by its mean length.

    Its gradient is that of D, divided by the mean number of tokens of the group's
    answers (NeMo-Aligner). Only `log_probabilities` get a gradient.

    Args:
        target: ln w'.
        policy: ln b'. It may be from a pass without gradients.
        log_probabilities: ln Q(y | a, x).
        tokens: number of tokens of each answer; 0 for one that is absent. Its weights
            are 0, and the mean is over the others.
    """
    pull = (policy.exp() - target.exp()).detach()
    answers = (tokens > 0).sum(dim=-1).clamp(min=1)
    mean_tokens = (tokens.sum(dim=-1) / answers).clamp(min=1)
    return (pull * log_probabilities).sum(dim=-1) / mean_tokens


def effective_samples(target: "Tensor") -> "Tensor":
    """Return 1 / sum of w'^2: how many answers of each group carry the weight.

    It is 1 if a single answer has it all. With sums over many tokens, it often is near
    1, and most of what was sampled then teaches nothing.

    Args:
        target: ln w'.
    """
    return 1 / target.exp().square().sum(dim=-1)
