"""The held-out score: how well a checkpoint tells chosen answers from rejected ones.

Only the checkpoint's own likelihood counts, without a reference.
"""

import math
from typing import TYPE_CHECKING

import orjson

from bezoar_ray import layout
from bezoar_ray.data.schema import Pair
from bezoar_ray.stats import wilson
from bezoar_ray.store import Store
from bezoar_ray.train.encoding import IGNORED, last_answer
from bezoar_ray.train.packing import Layout, fused_head, packed
from bezoar_ray.train.passes import split_for_scoring

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def margins(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: list[Pair],
    max_length: int,
    layout: Layout,
) -> dict[str, float]:
    """Score each pair by how much likelier its chosen answer is, per token.

    A pair with a side of more than `max_length` tokens is left out.

    Returns:
        By pair id, the mean log-probability of the chosen answer's tokens minus that of
        the rejected answer's, in nats.
    """
    sides_by_pair = {}
    for pair in pairs:
        chosen = last_answer(tokenizer, pair.prompt, pair.chosen)
        rejected = last_answer(tokenizer, pair.prompt, pair.rejected)
        longest = max(len(chosen["input_ids"]), len(rejected["input_ids"]))
        if longest <= max_length:
            sides_by_pair[pair.id] = [chosen, rejected]
    sides = [side for both in sides_by_pair.values() for side in both]
    scores = mean_log_probabilities(model, sides, layout)
    chosen_scores = scores[0::2]
    rejected_scores = scores[1::2]
    return {
        id: chosen - rejected
        for id, chosen, rejected in zip(
            sides_by_pair, chosen_scores, rejected_scores, strict=True
        )
    }


def summary(margin_by_pair: dict[str, float]) -> dict[str, object]:
    """Return the share of pairs that are right and its 95 % interval, for summary.json.

    Both are None without pairs.
    """
    total = len(margin_by_pair)
    right = sum(map(is_right, margin_by_pair.values()))
    share = round(right / total, 4) if total else None
    return {"heldout_accuracy": share, "heldout_ci95": wilson(right, total)}


def is_right(margin: float) -> bool:
    """Whether the chosen answer is the likelier one; a tie or NaN is not right."""
    return margin > 0


def write(store: Store, checkpoint: str, margin_by_pair: dict[str, float]) -> None:
    """Write a checkpoint's margins, one line for each pair."""
    lines = []
    for id, margin in margin_by_pair.items():
        lines.append(orjson.dumps({"id": id, "margin": margin}) + b"\n")
    store.replace(layout.checkpoint(checkpoint).heldout, b"".join(lines))


def read(store: Store, checkpoint: str) -> dict[str, float] | None:
    """Read a checkpoint's margins; None if an earlier version did not keep them."""
    file = layout.checkpoint(checkpoint).heldout
    if not store.exists(file):
        return None
    margin_by_pair = {}
    for line in store.read(file).splitlines():
        row = orjson.loads(line)
        margin = row["margin"]
        # JSON has no NaN, so orjson has written null.
        margin_by_pair[row["id"]] = math.nan if margin is None else margin
    return margin_by_pair


def mean_log_probabilities(
    model: "PreTrainedModel", rows: list[dict[str, list[int]]], layout: Layout
) -> list[float]:
    """Return the mean log-probability of the labelled tokens of each row."""
    sums, tokens = _score_rows(model, rows, layout)
    # A row without labelled tokens scores 0 and not NaN.
    return (sums / tokens.clamp(min=1)).tolist()


def sum_log_probabilities(
    model: "PreTrainedModel | PeftModel",
    rows: list[dict[str, list[int]]],
    layout: Layout,
) -> list[float]:
    """Return the summed log-probability of the labelled tokens of each row."""
    sums, _ = _score_rows(model, rows, layout)
    return sums.tolist()


def _score_rows(
    model: "PreTrainedModel | PeftModel",
    rows: list[dict[str, list[int]]],
    layout: Layout,
) -> "tuple[Tensor, Tensor]":
    """Return sum and number of the labelled tokens of each row, on the CPU."""
    import torch

    lengths = [len(row["input_ids"]) for row in rows]
    sums = torch.zeros(len(rows))
    tokens = torch.zeros(len(rows))
    model.eval()
    with torch.inference_mode(), fused_head(model), packed(model, layout):
        for indices in split_for_scoring(lengths, layout):
            pass_sums, pass_tokens = _score_pass(
                model, [rows[index] for index in indices]
            )
            sums[indices] = pass_sums.float().cpu()
            tokens[indices] = pass_tokens.float().cpu()
    return sums, tokens


def _score_pass(
    model: "PreTrainedModel | PeftModel", rows: list[dict[str, list[int]]]
) -> "tuple[Tensor, Tensor]":
    import torch
    from torch.nn.utils.rnn import pad_sequence

    row_ids = [torch.tensor(row["input_ids"]) for row in rows]
    row_labels = [torch.tensor(row["labels"]) for row in rows]
    row_masks = [torch.ones_like(ids) for ids in row_ids]
    ids = pad_sequence(row_ids, batch_first=True)
    labels = pad_sequence(row_labels, batch_first=True, padding_value=IGNORED)
    mask = pad_sequence(row_masks, batch_first=True)
    output = model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        labels=labels.to(model.device),
        fused_lm_head=True,
    )
    return output.log_probs.sum(dim=1), output.label_mask.sum(dim=1)
