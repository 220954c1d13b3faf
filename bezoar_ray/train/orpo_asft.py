"""ORPO and ASFT: losses of the mean log-probability A of an answer's token, with p = exp(A) and odds p / (1 - p).

Both average over the answer alone, row by row. (TRL's experimental ORPO takes the likelihood of prompt and answer.)
"""

from typing import TYPE_CHECKING

from bezoar_ray.train.encoding import IGNORED

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

_HIGHEST = -1e-6  # of A: nearer to 0, log(1 - p) has no finite gradient in float32


def orpo(chosen: "Tensor", rejected: "Tensor", weight: float) -> "Tensor":
    """ORPO (arXiv 2403.07691, eq. 6): the chosen answer's likelihood, and the odds ratio of the two answers.

    Args:
        chosen: A of the chosen answers, float32, shape (pairs,).
        rejected: A of the rejected ones.
        weight: of the odds ratio, the paper's lambda.

    Returns:
        The loss of each pair.
    """
    from torch.nn.functional import logsigmoid

    return -chosen - weight * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def asft(chosen: "Tensor", rejected: "Tensor", weight: float) -> "Tensor":
    """ASFT, Aligned SFT (arXiv 2409.10571, as restated by 2502.01237): each answer is judged by itself.

    -A_w - weight (log sigmoid(log odds_w) + log sigmoid(-log odds_l)), which is
    -(1 + weight) A_w - weight log(1 - p_l).
    Arguments and result as `orpo`'s.
    """
    return -(1 + weight) * chosen - weight * _log_of_rest(rejected)


LOSSES = {"orpo": orpo, "asft": asft}


def mean_log_probability(model: "PeftModel", batch: "dict[str, Tensor]") -> "Tensor":
    """A of each row of a TRL preference batch, in float32: of its `completion_mask` alone.

    The model has TRL's `add_fused_lm_head`, which never makes the logits of a prompt.
    """
    mask = batch["completion_mask"]
    labels = batch["input_ids"].masked_fill(mask == 0, IGNORED)
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=labels,
        fused_lm_head=True,
    )
    return output.log_probs.sum(dim=1) / mask[:, 1:].sum(dim=1).clamp(min=1)


def _log_odds(mean: "Tensor") -> "Tensor":
    return mean - _log_of_rest(mean)


def _log_of_rest(mean: "Tensor") -> "Tensor":
    """log(1 - p), with a finite gradient everywhere."""
    import torch

    return torch.log(-torch.expm1(mean.clamp(max=_HIGHEST)))
