"""The equations of PPO, DR-PO, RLOO and GRPO, on tensors alone.

All tensors over tokens have the shape (episodes, tokens). A mask is 1 at the tokens
that count and 0 elsewhere. The sums over a batch that is shared by several workers go
through `sum_over_workers`, so that the result does not depend on their number.

The defaults are those of DR-PO's released code (arXiv 2404.08495, Cornell-RL/drpo).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SumOverWorkers = Callable[["Tensor"], "Tensor"]
"""Sums a tensor over all workers."""

GAMMA = 1.0
"""Discount of later rewards (arXiv 2404.08495, table 5)."""
LAMBDA = 0.95
"""Weight of later steps in the advantage (arXiv 1506.02438, eq. 16)."""
_HIGHEST_IMPORTANCE = 2.0
_EPSILON = 1e-8  # of a variance
_GRPO_EPSILON = 1e-4  # of a standard deviation, as in TRL


def on_one_worker(total: "Tensor") -> "Tensor":
    """Return a sum as it is, where only one worker has episodes."""
    return total


def token_rewards(
    log_ratios: "Tensor", scores: "Tensor", mask: "Tensor", kl_weight: float
) -> "Tensor":
    """Return the reward of each token: a penalty, and at the last one the score.

    The penalty is the weighted log-ratio of policy and reference, whose expectation is
    their KL divergence (arXiv 2404.08495, section 3 and eq. 1).

    Args:
        log_ratios: ln(policy / reference) of each token.
        scores: shape (episodes,).
        mask: of the tokens that are rewarded; each episode has at least one.
        kl_weight: of the penalty.
    """
    import torch

    rewards = -kl_weight * log_ratios * mask
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).argmax(dim=1)
    rows = torch.arange(len(scores), device=mask.device)
    rewards[rows, last] += scores
    return rewards


def whiten(
    values: "Tensor",
    mask: "Tensor",
    shift_mean: bool = True,
    sum_over_workers: SumOverWorkers = on_one_worker,
) -> "Tensor":
    """Scale values to variance 1, and with `shift_mean` to mean 0.

    The variance is that of the population. DR-PO's code whitens rewards without
    shifting them, and advantages with it.
    """
    import torch

    count = sum_over_workers(mask.sum())
    mean = sum_over_workers((values * mask).sum()) / count
    squares = ((values - mean) ** 2 * mask).sum()
    variance = sum_over_workers(squares) / count
    whitened = (values - mean) * torch.rsqrt(variance + _EPSILON)
    if not shift_mean:
        whitened = whitened + mean
    return whitened * mask


def gae(rewards: "Tensor", values: "Tensor", mask: "Tensor") -> "tuple[Tensor, Tensor]":
    """Generalized advantage estimation (arXiv 1506.02438, eq. 16).

    Args:
        rewards: of each token.
        values: the critic's value before each token.
        mask: of the tokens that count, without gaps in an episode.

    Returns:
        Advantages, and the returns that the critic learns: advantage plus value.
    """
    import torch

    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for position in reversed(range(rewards.shape[1])):
        is_token = mask[:, position]
        value = values[:, position]
        error = rewards[:, position] + GAMMA * next_value - value
        advantage = (error + GAMMA * LAMBDA * advantage) * is_token
        next_value = value * is_token
        advantages[:, position] = advantage
    return advantages, (advantages + values) * mask


def rloo_advantages(returns: "Tensor", group: int) -> "Tensor":
    """How far each return is above the mean of its group's others (arXiv 2402.14740).

    Args:
        returns: shape (episodes,); the members of a group are neighbors.
        group: members of a group, at least two.
    """
    grouped = returns.view(-1, group)
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten()


def grpo_advantages(returns: "Tensor", group: int) -> "Tensor":
    """How many deviations each return is above its group's mean (arXiv 2402.03300).

    The deviation divides by the members minus one, as in TRL. GRPO's KL penalty is in
    its loss; here it is in the returns, as for the other estimators.

    Args:
        returns: shape (episodes,); the members of a group are neighbors.
        group: members of a group, at least two.
    """
    grouped = returns.view(-1, group)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    deviation = grouped.std(dim=1, keepdim=True)
    return (centred / (deviation + _GRPO_EPSILON)).flatten()


def policy_losses(
    log_probs: "Tensor", old_log_probs: "Tensor", advantages: "Tensor", clip: float
) -> "tuple[Tensor, Tensor]":
    """The clipped policy loss of each token (arXiv 1707.06347, eq. 7).

    The released DR-PO averages it over the tokens that the policy wrote itself, and
    PPO, without forced tokens, over all.

    Returns:
        The losses, and 1 where clipping made a loss larger, 0 elsewhere.
    """
    import torch

    ratios = torch.exp(log_probs - old_log_probs)
    plain = -advantages * ratios
    clipped = -advantages * ratios.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), (clipped > plain).float()


def truncated_importance(log_probs: "Tensor", engine_log_probs: "Tensor") -> "Tensor":
    """Return the weight of each token's loss where another engine has sampled it.

    It is the ratio of the learner's probability and the engine's, at most 2, as in the
    mode `token_truncate` of TRL's GRPO. It corrects for an engine that computes the same policy differently, for
    example without the 4 bits of the learner's base. Without an upper limit, a few
    tokens could outweigh all others.

    Args:
        log_probs: by the learner, before the first step.
        engine_log_probs: by the engine.
    """
    import torch

    return torch.exp(log_probs - engine_log_probs).clamp(max=_HIGHEST_IMPORTANCE)


def value_losses(
    values: "Tensor", old_values: "Tensor", returns: "Tensor", clip: float
) -> "Tensor":
    """The clipped squared error of the critic at each token, halved.

    A value counts no better for moving by more than `clip` from the old one, as in the
    released DR-PO and OpenAI's baselines.
    """
    import torch

    clipped = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * errors


def masked_mean(values: "Tensor", mask: "Tensor") -> "Tensor":
    """Return the mean of the values that count; 0 if none does."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class Estimate:
    """What a batch of episodes is learned from; each field is of shape
    (episodes, tokens)."""

    advantages: "Tensor"
    returns: "Tensor"
    """What the critic learns. Zeros without a critic."""


def estimate_with_critic(
    log_ratios: "Tensor",
    scores: "Tensor",
    values: "Tensor",
    mask: "Tensor",
    kl_weight: float,
    sum_over_workers: SumOverWorkers = on_one_worker,
) -> Estimate:
    """Estimate advantages as PPO and the released DR-PO do.

    Args:
        log_ratios: ln(policy / reference) of each token.
        scores: shape (episodes,).
        values: the critic's value before each token.
        mask: of the answers' tokens. With the forced ones it is the released code; the
            paper's text leaves them out.
        kl_weight: of the penalty in the reward.
        sum_over_workers: whitening is over the episodes of all workers.
    """
    rewards = token_rewards(log_ratios, scores, mask, kl_weight)
    rewards = whiten(rewards, mask, False, sum_over_workers)
    advantages, returns = gae(rewards, values * mask, mask)
    advantages = whiten(advantages, mask, True, sum_over_workers)
    return Estimate(advantages, returns)


def estimate_in_groups(
    log_ratios: "Tensor",
    scores: "Tensor",
    mask: "Tensor",
    kl_weight: float,
    group: int,
    advantage: str,
) -> Estimate:
    """Compare each answer with the others to its prompt, without a critic.

    All tokens of an answer have the same advantage.

    Args:
        log_ratios: ln(policy / reference) of each token.
        scores: shape (episodes,).
        mask: of the tokens that the policy wrote. Those that are forced are the same in
            the whole group, so their penalty would cancel.
        kl_weight: of the penalty, which is summed over the tokens.
        group: members of a group.
        advantage: `rloo` or `grpo`.
    """
    import torch

    returns = scores - kl_weight * (log_ratios * mask).sum(dim=1)
    compare = {"rloo": rloo_advantages, "grpo": grpo_advantages}[advantage]
    advantages = compare(returns, group)[:, None] * mask
    return Estimate(advantages, torch.zeros_like(advantages))


def explained_variance(
    values: "Tensor",
    returns: "Tensor",
    mask: "Tensor",
    sum_over_workers: SumOverWorkers = on_one_worker,
) -> float:
    """Return how much of the returns' variance the critic's values explain.

    It is 1 for perfect values, 0 for a constant, and 0 if all returns are equal.
    """
    total = _variance(returns, mask, sum_over_workers)
    rest = _variance(returns - values, mask, sum_over_workers)
    return 1 - rest / total if total else 0.0


def _variance(
    values: "Tensor", mask: "Tensor", sum_over_workers: SumOverWorkers
) -> float:
    count = sum_over_workers(mask.sum())
    mean = sum_over_workers((values * mask).sum()) / count
    squares = ((values - mean) ** 2 * mask).sum()
    return (sum_over_workers(squares) / count).item()
