"""How well a checkpoint tells a chosen answer from a rejected one, by its own likelihood alone."""

from typing import Any

from bezoar_ray.rows import Pair
from bezoar_ray.train.data import IGNORED, last_answer


def accuracy(model: Any, tokenizer: Any, pairs: list[Pair], max_length: int, batch: int) -> float | None:
    """Share of the pairs whose chosen answer has the higher mean log-probability of a token; None without pairs.

    Pairs of which a side is longer than `max_length` tokens do not count.
    """
    sides = [tuple(last_answer(tokenizer, p.prompt, answer) for answer in (p.chosen, p.rejected)) for p in pairs]
    rows = [side for pair in sides if all(len(s["input_ids"]) <= max_length for s in pair) for side in pair]
    scores = mean_log_probabilities(model, rows, batch)
    return share_higher(scores[::2], scores[1::2])


def share_higher(chosen: list[float], rejected: list[float]) -> float | None:
    """Share of the places where the first is higher; a tie is not."""
    won = [a > b for a, b in zip(chosen, rejected, strict=True)]
    return round(sum(won) / len(won), 4) if won else None


def mean_log_probabilities(model: Any, rows: list[dict[str, list[int]]], batch: int) -> list[float]:
    """Mean log-probability of the labelled tokens of each row, in the order given."""
    import torch

    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    scores = [0.0] * len(rows)
    model.eval()
    with torch.inference_mode():
        for begin in range(0, len(order), batch):
            chosen = order[begin : begin + batch]
            for index, score in zip(chosen, _score(model, [rows[i] for i in chosen]), strict=True):
                scores[index] = score
    return scores


def _score(model: Any, rows: list[dict[str, list[int]]]) -> list[float]:
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [IGNORED] * (longest - len(row["labels"])) for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    ids, labels, mask = (tensor.to(model.device) for tensor in (ids, labels, mask))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    wanted = labels[:, 1:]
    cross_entropy = torch.nn.functional.cross_entropy
    losses = cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
    counted = (wanted != IGNORED).sum(dim=1).clamp(min=1)
    return (-losses.sum(dim=1) / counted).tolist()
