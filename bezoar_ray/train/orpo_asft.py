"""ORPO and ASFT: losses of A, the mean log-probability of an answer's tokens.

With p = exp(A), the odds of an answer are p / (1 - p). Both losses average over the
answer alone, row by row. (TRL's experimental ORPO uses the likelihood of prompt and
answer.)
"""

from typing import TYPE_CHECKING

from bezoar_ray.train.encoding import IGNORED

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

_HIGHEST = -1e-6
"""Bound of A: closer to 0, log(1 - p) has no finite gradient in float32."""


def orpo(chosen: "Tensor", rejected: "Tensor", weight: float) -> "Tensor":
    """ORPO (arXiv 2403.07691, eq. 6): likelihood of the chosen answer and odds ratio.

    Args:
        chosen: A of the chosen answers, float32, shape (pairs,).
        rejected: A of the rejected answers, same shape.
        weight: of the odds ratio, the paper's lambda.

    Returns:
        The loss of each pair.
    """
    from torch.nn.functional import logsigmoid

    # autograd sums the gradients of `chosen` in the order of these lines, so another
    # order would round differently.
    likelihood_loss = -chosen
    log_odds_ratio = _log_odds(chosen) - _log_odds(rejected)
    return likelihood_loss - weight * logsigmoid(log_odds_ratio)


def asft(chosen: "Tensor", rejected: "Tensor", weight: float) -> "Tensor":
    """ASFT, Aligned SFT (arXiv 2409.10571), as restated by arXiv 2502.01237.

    Each answer is judged by itself:
    -A_w - weight (log sigmoid(log odds_w) + log sigmoid(-log odds_l)), which equals
    -(1 + weight) A_w - weight log(1 - p_l).
    Arguments and result are those of `orpo`.
    """
    return -(1 + weight) * chosen - weight * _log_complement(rejected)


LOSSES = {"orpo": orpo, "asft": asft}


def mean_log_probability(model: "PeftModel", batch: "dict[str, Tensor]") -> "Tensor":
    """Return A of each row of a TRL preference batch, in float32.

    Only the tokens of the row's `completion_mask` count. The model has TRL's
    `add_fused_lm_head`, which never computes the logits of a prompt.
    """
    mask = batch["completion_mask"]
    labels = batch["input_ids"].masked_fill(mask == 0, IGNORED)
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=labels,
        fused_lm_head=True,
    )
    answer_tokens = mask[:, 1:].sum(dim=1).clamp(min=1)
    return output.log_probs.sum(dim=1) / answer_tokens


def _log_odds(mean: "Tensor") -> "Tensor":
    return mean - _log_complement(mean)


def _log_complement(mean: "Tensor") -> "Tensor":
    """Return log(1 - p), with a finite gradient everywhere."""
    import torch

    return torch.log(-torch.expm1(mean.clamp(max=_HIGHEST)))
