"""How well a checkpoint tells a chosen answer from a rejected one, by its own likelihood alone."""

from typing import Any

from bezoar_ray.rows import Pair
from bezoar_ray.train.data import IGNORED, last_answer
from bezoar_ray.train.packing import Layout, fused_head, packed
from bezoar_ray.train.pass_size import PassSize
from bezoar_ray.train.passes import Row, split

_PASS = PassSize(tokens=8_192)  # without gradients a pass takes little memory


def accuracy(model: Any, tokenizer: Any, pairs: list[Pair], max_length: int, layout: Layout) -> float | None:
    """Share of the pairs whose chosen answer has the higher mean log-probability of a token; None without pairs.

    Pairs of which a side is longer than `max_length` tokens do not count.
    """
    sides = [tuple(last_answer(tokenizer, p.prompt, answer) for answer in (p.chosen, p.rejected)) for p in pairs]
    rows = [side for pair in sides if all(len(s["input_ids"]) <= max_length for s in pair) for side in pair]
    scores = mean_log_probabilities(model, rows, layout)
    return share_higher(scores[::2], scores[1::2])


def share_higher(chosen: list[float], rejected: list[float]) -> float | None:
    """Share of the places where the first is higher; a tie is not."""
    won = [a > b for a, b in zip(chosen, rejected, strict=True)]
    return round(sum(won) / len(won), 4) if won else None


def mean_log_probabilities(model: Any, rows: list[dict[str, list[int]]], layout: Layout) -> list[float]:
    """Mean log-probability of the labelled tokens of each row, in the order given."""
    import torch

    sizes = [Row(len(row["input_ids"]), 1, len(row["input_ids"])) for row in rows]
    scores = [0.0] * len(rows)
    model.eval()
    with torch.inference_mode(), fused_head(model), packed(model, layout):
        for indices in split(sizes, _PASS, layout):
            for index, score in zip(indices, _score(model, [rows[index] for index in indices]), strict=True):
                scores[index] = score
    return scores


def _score(model: Any, rows: list[dict[str, list[int]]]) -> list[float]:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    labels = pad_sequence([torch.tensor(row["labels"]) for row in rows], batch_first=True, padding_value=IGNORED)
    mask = pad_sequence([torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows], batch_first=True)
    ids, labels, mask = (tensor.to(model.device) for tensor in (ids, labels, mask))
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    counted = output.label_mask.sum(dim=1).clamp(min=1)
    return (output.log_probs.sum(dim=1) / counted).tolist()
