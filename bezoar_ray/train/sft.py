"""sft: one QLoRA adapter carried through the accepted rows of LaMini, Orca and Evol-Instruct, merged at the end."""

from functools import partial
from typing import Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.samples import read_samples
from bezoar_ray.stage import Context, Outcome
from bezoar_ray.train import checkpoints, data, loop, models, pairs, worker
from bezoar_ray.train.tokenizer import load_tokenizer


def run(context: Context) -> Outcome:
    """Train sft, and score it and base on the held-out pairs.

    Raises:
        BezoarError: no scheme has an accepted row.
    """
    pairs.ensure(context)
    schemes = _schemes(context)
    checkpoints.clear(context, "base")
    checkpoints.clear(context, "sft")
    inputs = [f"data/{scheme}/accepted" for scheme in schemes] + [f"{pairs.FOLDER}/heldout"]
    result = worker.fit(context, "sft", _train, inputs)
    return Outcome(checkpoints.files(context.store, "base", "sft"), {"train": result})


def _schemes(context: Context) -> list[str]:
    """The schemes that have rows, in the order of training; the others are named."""
    order = context.recipe.sft_order
    found = [scheme for scheme in order if read_samples(context.store, scheme, "accepted")]
    for scheme in (scheme for scheme in order if scheme not in found):
        context.progress.say(f"warning: {scheme} has no accepted rows; its training step is left out")
    if not found:
        raise BezoarError(
            f"sft: none of {', '.join(order)} has an accepted row to train on. summary.json says under `data` which "
            "gate took them; lower filter.accept_rating, or look at the samples in data/*/rejected"
        )
    return found


def _train(job: worker.Job) -> dict[str, Any]:
    """On every worker: all steps on one adapter; rank 0 then makes the checkpoint."""
    part, tokenizer = job.recipe.sft, load_tokenizer(job.recipe)
    steps, left_out = _steps(job, tokenizer)
    model = partial(models.with_new_adapter, lora=part.lora, seed=job.recipe.seed)
    account = loop.train(job, model, steps, loop.sft_trainer(tokenizer))
    rows = sum(len(step.rows) for step in steps)
    return loop.close(job, tokenizer, part.lora, loop.figures(account, rows, left_out))


def _steps(job: worker.Job, tokenizer: Any) -> tuple[list[loop.Step], int]:
    """A step by scheme, and how many rows were too long."""
    steps, left_out = [], 0
    for scheme in job.recipe.sft_order:
        samples = read_samples(job.store, scheme, "accepted")[: job.recipe.sft.limit]
        rows = [data.encode(tokenizer, data.conversation(sample)) for sample in samples]
        kept = data.fitting(rows, job.recipe.sft.max_length)
        left_out += len(rows) - len(kept)
        if kept:
            steps.append(loop.Step(scheme, kept))
    if not steps:
        raise BezoarError(f"sft: every accepted row is longer than max_length {job.recipe.sft.max_length}: raise it")
    return steps, left_out
