"""dpo: hh-sft's adapter goes on learning from pairs, held to its own frozen copy (DPO, arXiv 2305.18290)."""

from functools import partial
from typing import Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.rows import Pair
from bezoar_ray.stage import Context, Outcome
from bezoar_ray.train import data, loop, models, on_pairs, pairs, worker
from bezoar_ray.train.tokenizer import load_tokenizer

LAST_PART = 0.25  # of the logged steps, whose mean is the reward accuracy


def run(context: Context) -> Outcome:
    """Train dpo, and score it on the held-out pairs.

    Raises:
        BezoarError: there are no pairs.
    """
    return on_pairs.run(context, "dpo", "pairs", _train)


def _train(job: worker.Job) -> dict[str, Any]:
    """On every worker: the pairs on hh-sft's adapter; rank 0 then makes the checkpoint."""
    part, tokenizer = job.recipe.align, load_tokenizer(job.recipe)
    found = pairs.read(job.store, "pairs")
    rows = [_row(pair) for pair in found if _fits(tokenizer, pair, part.max_length)]
    if not rows:
        raise BezoarError(f"dpo: every pair is longer than max_length {part.max_length}: raise it")
    adapter = str(job.store.path("checkpoints/hh-sft/adapter"))
    model = partial(models.with_adapter, folder=adapter, trainable=True)
    account = loop.train(job, model, [loop.Step("pairs", rows)], loop.dpo_trainer(tokenizer, part.beta))
    figures = loop.figures(account, len(rows), len(found) - len(rows))
    figures["reward_accuracy"] = reward_accuracy(account.history)
    return loop.close(job, tokenizer, job.recipe.hh_sft.lora, figures)


def reward_accuracy(history: list[dict[str, Any]]) -> float | None:
    """Share of the pairs whose chosen answer has gained more on the reference, over the last quarter of the steps."""
    last = history[-max(1, int(len(history) * LAST_PART)) :]
    return round(sum(point["reward_accuracy"] for point in last) / len(last), 4) if last else None


def _fits(tokenizer: Any, pair: Pair, max_length: int) -> bool:
    sides = [data.last_answer(tokenizer, pair.prompt, answer) for answer in (pair.chosen, pair.rejected)]
    return len(data.fitting(sides, max_length)) == len(sides)


def _row(pair: Pair) -> dict[str, Any]:
    """A pair as TRL reads it."""
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": pair.prompt, **answers}
