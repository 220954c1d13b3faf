"""align: hh-sft's adapter learns from pairs, by default with its frozen copy as the reference.

The default method is DPO (arXiv 2305.18290).
"""

from functools import partial

from bezoar_ray import layout
from bezoar_ray.recipe import Align
from bezoar_ray.runtime.logs import event
from bezoar_ray.stages import STAGES, StageContext, StageResult
from bezoar_ray.train import (
    checkpoints,
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

LAST_PART = 0.25  # of the logged steps, whose mean is the reward accuracy


def run(context: StageContext) -> StageResult:
    """Train on pairs, and score it on the held-out pairs; without a method there is no such checkpoint.

    Raises:
        BezoarError: there are no pairs.
    """
    if context.recipe.align.method == "none":
        checkpoints.clear(context, *STAGES["align"].checkpoint_names)
        return StageResult([])
    return on_pairs.run(context, "align", prepared, _train)


def prepared(context: StageContext) -> TokenizedDataset:
    """The pairs."""
    return prepare(
        context,
        "align",
        "pairs",
        [pairs.file("pairs")],
        encoding.pair_tokens,
        encoding.PAIR,
    )


def _train(job: launcher.Job) -> dict[str, object]:
    """On every worker: the pairs on hh-sft's adapter; rank 0 then makes the checkpoint."""
    tokenizer = load_tokenizer(job.recipe)
    adapter = str(job.store.path(layout.checkpoint("hh-sft").adapter))
    model = partial(model_loading.with_adapter, folder=adapter, trainable=True)
    train_state = loop.train(job, model, trainers.preference(tokenizer, _align(job)))
    figures = loop.figures(job, train_state) | {
        "reward_accuracy": reward_accuracy(train_state.history)
    }
    return loop.close(job, tokenizer, job.recipe.hh_sft.lora, train_state, figures)


def _align(job: launcher.Job) -> Align:
    """As the recipe has it; but the reference's answers lie on a disk, which workers on several nodes share only where
    the run directory does: with a bucket they ask it in every step."""
    from ray.train import get_context

    context = get_context()
    apart = (
        job.store.remote and context.get_local_world_size() < context.get_world_size()
    )
    if apart and job.recipe.align.precompute_reference:
        event(
            "the reference is asked in every step: the run directory is a bucket, the workers are on several nodes"
        )
        return job.recipe.align.model_copy(update={"precompute_reference": False})
    return job.recipe.align


def reward_accuracy(history: list[dict[str, float]]) -> float | None:
    """Share of the pairs whose chosen answer has gained more on the reference, over the last quarter of the steps.

    Of methods without a reference: whose chosen answer has the higher mean log-probability. None for kto, which looks
    at one side at a time.
    """
    shares = [
        point["reward_accuracy"] for point in history if "reward_accuracy" in point
    ]
    last = shares[-max(1, int(len(shares) * LAST_PART)) :]
    return round(sum(last) / len(last), 4) if last else None
