"""sft: one QLoRA adapter carried through the accepted rows of LaMini, Orca and Evol-Instruct, merged at the end."""

from functools import partial

from bezoar_ray import sources
from bezoar_ray.data.sample_io import SampleFiles, sample_files
from bezoar_ray.errors import BezoarError
from bezoar_ray.stages import StageContext, StageResult
from bezoar_ray.train import (
    checkpoints,
    encoding,
    launcher,
    loop,
    model_loading,
    pairs,
    trainers,
)
from bezoar_ray.train.tokenized_dataset import TokenizedDataset, check_rows, prepare
from bezoar_ray.train.tokenizer import load_tokenizer


def run(context: StageContext) -> StageResult:
    """Train sft, and score it and base on the held-out pairs.

    Raises:
        BezoarError: no scheme has an accepted row that fits.
    """
    pairs.ensure(context)
    found = prepared(context)
    checkpoints.clear(context, "base")
    checkpoints.clear(context, "sft")
    result = launcher.fit(context, "sft", _train, found, [f"{pairs.FOLDER}/heldout"])
    return StageResult(
        checkpoints.files(context.store, "base", "sft"), {"train": result}
    )


def prepared(context: StageContext) -> list[TokenizedDataset]:
    """The schemes that have rows, in the order of training; the others are named. Raises as `run` does."""
    found = []
    for scheme in context.recipe.sft_order:
        own = scheme in context.recipe.sft.data
        files = (
            _copy_own(context, scheme)
            if own
            else sample_files(context.store, scheme, "accepted")
        )
        if not files:
            context.progress.say(
                f"warning: {scheme} has no accepted rows; its training step is left out"
            )
            continue
        found.append(
            prepare(
                context,
                "sft",
                scheme,
                files,
                encoding.sample_tokens,
                encoding.CONVERSATION,
            )
        )
    if not found:
        raise BezoarError(
            f"sft: none of {', '.join(context.recipe.sft_order)} has an accepted row to train on. summary.json says "
            "under `data` which gate took them; lower filter.accept_rating, or look at the samples in data/*/rejected"
        )
    check_rows(context, "sft", found)
    return found


def _copy_own(context: StageContext, name: str) -> list[str]:
    """Put the recipe's own rows where the filter leaves accepted ones. Returns the names of the files."""
    loaded = sources.read_own(context.recipe.sft.data[name], name)
    pairs.name_malformed(context, loaded.failed, f"rows of {name}")
    files = SampleFiles(context.store, [name], ["accepted"])
    files.write(loaded.rows)
    return files.names


def _train(job: launcher.Job) -> dict[str, object]:
    """On every worker: all data sets on one adapter; rank 0 then makes the checkpoint."""
    part, tokenizer = job.recipe.sft, load_tokenizer(job.recipe)
    model = partial(
        model_loading.with_new_adapter, lora=part.lora, seed=job.recipe.seed
    )
    if part.adapter:
        model = partial(
            model_loading.with_custom_adapter, folder=part.adapter, lora=part.lora
        )
    train_state = loop.train(job, model, trainers.supervised(tokenizer, part))
    return loop.close(
        job, tokenizer, part.lora, train_state, loop.figures(job, train_state)
    )
