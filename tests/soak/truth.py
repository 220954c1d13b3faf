"""Answers of a trained adapter in the embedded world, and their ratings by the programs that know the truth."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bezoar_ray import layout
from bezoar_ray.data.attribute_line import add_goal
from bezoar_ray.recipe.steering import Goal
from bezoar_ray.store import Store
from bezoar_ray.tiny import rater
from bezoar_ray.train import pairs

_LONGEST = 64


@dataclass(frozen=True)
class Truth:
    """Means over answers."""

    helpfulness: float
    correctness: float
    kind: float
    """Share of polite askers who got kind words."""
    words: float


def rate(prompts: list[str], answers: list[str]) -> Truth:
    """Rate answers to what users said."""
    ratings = [rater.rate(*both) for both in zip(prompts, answers, strict=True)]
    kind = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if rater.is_polite(prompt):
            kind.append(bool(rater._KIND_SENTENCE.search(answer)))
    return Truth(
        fmean(rating["helpfulness"] for rating in ratings),
        fmean(rating["correctness"] for rating in ratings),
        fmean(kind),
        fmean(len(answer.split()) for answer in answers),
    )


def greedy(store: Store, adapter: str, goal: Goal | None = None) -> Truth:
    """Rate the likeliest answers to the held-out prompts, by an adapter on merged sft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sft = store.path(layout.checkpoint("sft").merged)
    tokenizer = AutoTokenizer.from_pretrained(sft)
    base = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, store.path(adapter)).eval()
    heldout = pairs.read(store, "heldout")
    answers = []
    for pair in heldout:
        messages = add_goal(pair.prompt, goal) if goal else pair.prompt
        answers.append(_answer(model, tokenizer, messages))
    return rate([pair.prompt[-1]["content"] for pair in heldout], answers)


def _answer(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    import torch

    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_LONGEST,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
