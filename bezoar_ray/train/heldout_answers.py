"""Answers of a policy to held-out prompts, at some points of a training by reward.

A score that rises does not prove that answers become better: a policy also finds what
the reward model overrates. These answers show what has changed. Their tokens are drawn
with the same random numbers each time, so that only the policy differs.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

from bezoar_ray import layout
from bezoar_ray.recipe import Align
from bezoar_ray.stages import Truth
from bezoar_ray.store import Store
from bezoar_ray.train import pairs
from bezoar_ray.train.encoding import prompt_tokens
from bezoar_ray.train.rollouts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPTS = 64
_PARTS = 5
"""Parts of the training, at whose beginnings and ends the policy answers."""


def prompts(
    store: Store, tokenizer: "PreTrainedTokenizerBase", align: Align
) -> list[Prompt]:
    """Return the held-out prompts that are answered, over all workers."""
    found = []
    for pair in pairs.read(store, "heldout"):
        encoded = prompt_tokens(tokenizer, asdict(pair), align.max_length)
        if isinstance(encoded, str):  # the reason why it is left out
            continue
        prompt_ids = encoded["prompt_ids"]
        found.append(Prompt(pair.id, f"heldout.{pair.id}", prompt_ids, []))
    return found[:_PROMPTS]


def steps(iterations: int) -> set[int]:
    """Return the numbers of finished iterations after which the policy answers."""
    return {round(part * iterations / _PARTS) for part in range(_PARTS + 1)}


def write(store: Store, checkpoint: str, looks: list[dict[str, Any]]) -> None:
    """Write each prompt with its answers, in the order of the training.

    Args:
        store: the run directory.
        checkpoint: the name of the policy.
        looks: each with its `step` and its `answers`.
    """
    if not looks:
        return
    messages = {pair.id: pair.prompt for pair in pairs.read(store, "heldout")}
    answers: dict[str, list[dict[str, Any]]] = {}
    for look in looks:
        for answer in look["answers"]:
            found = {"step": look["step"]} | answer
            answers.setdefault(found.pop("id"), []).append(found)
    lines = []
    for id, of_prompt in answers.items():
        row = {"id": id, "prompt": messages[id], "answers": of_prompt}
        lines.append(orjson.dumps(row) + b"\n")
    store.replace(layout.checkpoint(checkpoint).answers, b"".join(lines))


def read(store: Store, checkpoint: str) -> list[dict[str, Any]]:
    """Read the prompts with their answers; empty if there are none."""
    file = layout.checkpoint(checkpoint).answers
    if not store.exists(file):
        return []
    return [orjson.loads(line) for line in store.read(file).splitlines()]


def summary(looks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of each look, without its answers."""
    metrics = []
    for look in looks:
        metrics.append({name: look[name] for name in look if name != "answers"})
    return metrics


def right_share(look: dict[str, Any]) -> float | None:
    """Return the share of right answers of a look; None where none is known."""
    return look["right"] / look["known"] if look.get("known") else None


def count_right(
    store: Store, checkpoint: str, looks: list[dict[str, Any]], truth: Truth
) -> None:
    """Add to each look how many answers are right, and of how many that is known.

    Args:
        store: the run directory.
        checkpoint: the name of the policy.
        looks: of the summary; they get `right` and `known`.
        truth: says whether a response is right.
    """
    right = {look["step"]: 0 for look in looks}
    known = dict(right)
    for row in read(store, checkpoint):
        instruction = row["prompt"][-1]["content"]
        for answer in row["answers"]:
            is_right = truth(instruction, answer["text"])
            if is_right is not None:
                known[answer["step"]] += 1
                right[answer["step"]] += is_right
    for look in looks:
        look |= {"right": right[look["step"]], "known": known[look["step"]]}
