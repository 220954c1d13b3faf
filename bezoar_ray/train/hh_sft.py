"""hh-sft: a new LoRA on merged sft, trained on the chosen side of HH-RLHF."""

from functools import partial
from typing import Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.stage import Context, Outcome
from bezoar_ray.train import data, loop, models, on_pairs, pairs, worker
from bezoar_ray.train.tokenizer import load_tokenizer


def run(context: Context) -> Outcome:
    """Train hh-sft, and score it on the held-out pairs.

    Raises:
        BezoarError: there are no pairs.
    """
    return on_pairs.run(context, "hh-sft", "sft", _train)


def _train(job: worker.Job) -> dict[str, Any]:
    """On every worker: the chosen conversations; rank 0 then makes the checkpoint."""
    part, tokenizer = job.recipe.hh_sft, load_tokenizer(job.recipe)
    chosen = [data.encode(tokenizer, pair.conversation()) for pair in pairs.read(job.store, "sft")]
    rows = data.fitting(chosen, part.max_length)
    if not rows:
        raise BezoarError(f"hh-sft: every chosen answer is longer than max_length {part.max_length}: raise it")
    model = partial(models.with_new_adapter, lora=part.lora, seed=job.recipe.seed)
    account = loop.train(job, model, [loop.Step("hh_rlhf", rows)], loop.sft_trainer(tokenizer))
    return loop.close(job, tokenizer, part.lora, loop.figures(account, len(rows), len(chosen) - len(rows)))
