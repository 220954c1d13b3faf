"""From rows to tokens: the recipe's chat template, with the answers alone in the loss."""

from typing import Any

from bezoar_ray.rows import Sample

IGNORED = -100  # torch's label for "not in the loss"


def conversation(sample: Sample) -> list[dict[str, str]]:
    """The messages that a sample trains on; without a system message the template puts its own."""
    system = [{"role": "system", "content": sample.system}] if sample.system else []
    return [*system, {"role": "user", "content": sample.task}, {"role": "assistant", "content": sample.response}]


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, list[int]]:
    """`input_ids` and `labels` of one conversation; labels are ignored outside the template's generation marks."""
    coded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, marks = coded["input_ids"], coded["assistant_masks"]
    return {"input_ids": ids, "labels": [i if mark else IGNORED for i, mark in zip(ids, marks, strict=True)]}


def last_answer(tokenizer: Any, prompt: list[dict[str, str]], answer: str) -> dict[str, list[int]]:
    """As `encode`, with the last answer alone in the labels."""
    coded = encode(tokenizer, [*prompt, {"role": "assistant", "content": answer}])
    labels = coded["labels"]
    end = max((i for i, label in enumerate(labels) if label != IGNORED), default=-1)
    begin = max((i + 1 for i in range(end) if labels[i] == IGNORED), default=0)
    return {**coded, "labels": [IGNORED] * begin + labels[begin:]}


def fitting(rows: list[dict[str, list[int]]], max_length: int) -> list[dict[str, list[int]]]:
    """The rows that are not too long: a truncated answer would teach not to end."""
    return [row for row in rows if len(row["input_ids"]) <= max_length]
