"""How well a checkpoint tells a chosen answer from a rejected one, by its own likelihood alone."""

import math
from typing import TYPE_CHECKING

import orjson

from bezoar_ray import layout
from bezoar_ray.data.schema import Pair
from bezoar_ray.stats import wilson
from bezoar_ray.store import Store
from bezoar_ray.train.encoding import IGNORED, last_answer
from bezoar_ray.train.packing import Layout, fused_head, packed
from bezoar_ray.train.pass_size import PassSize
from bezoar_ray.train.passes import Row, split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PASS = PassSize(tokens=8_192)  # without gradients a pass takes little memory


def margins(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: list[Pair],
    max_length: int,
    layout: Layout,
) -> dict[str, float]:
    """By pair id, how much higher the mean log-probability of a token is in the chosen answer, in nats.

    Pairs of which a side is longer than `max_length` tokens do not count.
    """
    sides = {
        p.id: [
            last_answer(tokenizer, p.prompt, answer)
            for answer in (p.chosen, p.rejected)
        ]
        for p in pairs
    }
    short = {
        id: pair
        for id, pair in sides.items()
        if all(len(side["input_ids"]) <= max_length for side in pair)
    }
    scores = mean_log_probabilities(
        model, [side for pair in short.values() for side in pair], layout
    )
    return {id: scores[2 * n] - scores[2 * n + 1] for n, id in enumerate(short)}


def summary(found: dict[str, float]) -> dict[str, object]:
    """The share of pairs that are right, and its 95 % interval, for summary.json; None without pairs."""
    right = sum(map(is_right, found.values()))
    share = round(right / len(found), 4) if found else None
    return {"heldout_accuracy": share, "heldout_ci95": wilson(right, len(found))}


def is_right(margin: float) -> bool:
    """Whether the chosen answer is the likelier one; a tie is not right, nor is NaN."""
    return margin > 0


def write(store: Store, checkpoint: str, found: dict[str, float]) -> None:
    """Keep a checkpoint's margins, a line for each pair."""
    lines = [
        orjson.dumps({"id": id, "margin": margin}) + b"\n"
        for id, margin in found.items()
    ]
    store.replace(_file(checkpoint), b"".join(lines))


def read(store: Store, checkpoint: str) -> dict[str, float] | None:
    """A checkpoint's margins; None where it was scored before they were kept."""
    if not store.exists(_file(checkpoint)):
        return None
    rows = map(orjson.loads, store.read(_file(checkpoint)).splitlines())
    return {
        row["id"]: math.nan if row["margin"] is None else row["margin"] for row in rows
    }  # JSON has no NaN


def _file(checkpoint: str) -> str:
    return layout.checkpoint(checkpoint).heldout


def mean_log_probabilities(
    model: "PreTrainedModel", rows: list[dict[str, list[int]]], layout: Layout
) -> list[float]:
    """Mean log-probability of the labelled tokens of each row, in the order given."""
    import torch

    sizes = [Row(len(row["input_ids"]), 1, len(row["input_ids"])) for row in rows]
    scores = [0.0] * len(rows)
    model.eval()
    with torch.inference_mode(), fused_head(model), packed(model, layout):
        for indices in split(sizes, _PASS, layout):
            for index, score in zip(
                indices, _score(model, [rows[index] for index in indices]), strict=True
            ):
                scores[index] = score
    return scores


def _score(model: "PreTrainedModel", rows: list[dict[str, list[int]]]) -> list[float]:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence(
        [torch.tensor(row["input_ids"]) for row in rows], batch_first=True
    )
    labels = pad_sequence(
        [torch.tensor(row["labels"]) for row in rows],
        batch_first=True,
        padding_value=IGNORED,
    )
    mask = pad_sequence(
        [torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows],
        batch_first=True,
    )
    ids, labels, mask = (tensor.to(model.device) for tensor in (ids, labels, mask))
    output = model(
        input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True
    )
    counted = output.label_mask.sum(dim=1).clamp(min=1)
    return (output.log_probs.sum(dim=1) / counted).tolist()
