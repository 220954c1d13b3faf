"""hh-sft: a new LoRA on merged sft, trained on the chosen side of HH-RLHF."""

from functools import partial

from bezoar_ray.stages import StageContext, StageResult
from bezoar_ray.train import (
    encoding,
    launcher,
    loop,
    model_loading,
    on_pairs,
    pairs,
    trainers,
)
from bezoar_ray.train.tokenized_dataset import TokenizedDataset, prepare
from bezoar_ray.train.tokenizer import load_tokenizer


def run(context: StageContext) -> StageResult:
    """Train hh-sft, and score it on the held-out pairs.

    Raises:
        BezoarError: there are no pairs.
    """
    return on_pairs.run(context, "hh-sft", prepared, _train)


def prepared(context: StageContext) -> TokenizedDataset:
    """The chosen conversations."""
    return prepare(
        context,
        "hh-sft",
        "hh_rlhf",
        [pairs.file("sft")],
        encoding.chosen_tokens,
        encoding.CONVERSATION,
    )


def _train(job: launcher.Job) -> dict[str, object]:
    """On every worker: the chosen conversations; rank 0 then makes the checkpoint."""
    part, tokenizer = job.recipe.hh_sft, load_tokenizer(job.recipe)
    model = partial(
        model_loading.with_new_adapter, lora=part.lora, seed=job.recipe.seed
    )
    train_state = loop.train(job, model, trainers.supervised(tokenizer, part))
    return loop.close(
        job, tokenizer, part.lora, train_state, loop.figures(job, train_state)
    )
