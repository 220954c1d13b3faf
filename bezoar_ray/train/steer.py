"""SteerLM: the method `steer` of align, as several trainings of one adapter in turn.

SteerLM 1 (arXiv 2310.05344) learns from rated answers whose ratings are in the system
message. Each round of SteerLM 2.0 (arXiv 2406.08673) samples answers from the model of
the round before, weighs them by how well they reach their goal, and learns from the
weighted answers. What a round leaves is kept, so that a finished one is not repeated.
"""

import gc
import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bezoar_ray import layout
from bezoar_ray.data.attribute_line import attribute_line
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Recipe, Steer
from bezoar_ray.stages import StageContext
from bezoar_ray.train import (
    adapters,
    checkpoints,
    launcher,
    loop,
    model_loading,
    pairs,
    steer_samples,
    steer_scores,
    trainers,
)
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.online_model import without_dropout
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.tokenized_dataset import TokenizedDataset
from bezoar_ray.train.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STAGE = "align"
_LOW_EFFECTIVE_SAMPLES = 1.5
_QUARTER = 0.25  # of the logged steps, over which the first and last D are averaged


def fit(context: StageContext, ratings: list[TokenizedDataset]) -> dict[str, Any]:
    """Carry out SteerLM 1 and the rounds of SteerLM 2.0.

    Args:
        context: the run.
        ratings: rated answers with their ratings as the goal, tokenized.

    Returns:
        The metrics by checkpoint, as `launcher.fit` does.
    """
    steer = section(context.recipe)
    hh_sft = layout.checkpoint("hh-sft")
    results = [_fit_part(context, 0, ratings, hh_sft.adapter)]
    rounds = []
    for iteration in range(1, steer.iterations + 1):
        context.progress.say(f"SteerLM 2.0, round {iteration} of {steer.iterations}")
        sampler_adapter = layout.part_adapter(_part(iteration - 1))
        weighed = _sample_and_weigh(context, steer, iteration, sampler_adapter)
        _warn_if_low(context, iteration, weighed.metrics["effective_samples"])
        result = _fit_part(context, iteration, [weighed.dataset], sampler_adapter)
        results.append(result)
        rounds.append(weighed.metrics | _distances(result["metrics"]["by_step"]))
    # They are large, and can be merged again from their adapters.
    for iteration in range(steer.iterations):
        context.store.remove(layout.part_merged(_part(iteration)))
    checkpoint = context.recipe.checkpoint(_STAGE)
    metrics = _sum_up([result["metrics"] for result in results])
    metrics |= {"goal": context.recipe.align.goal, "rounds": rounds}
    heldout = results[-1]["heldout"]
    return {**heldout, checkpoint: metrics | heldout[checkpoint]}


def section(recipe: Recipe) -> Steer:
    """Return the recipe's section `align.steer`.

    Raises:
        RecipeError: the recipe has none.
    """
    if recipe.align.steer is None:
        raise RecipeError("align.steer: missing. The method steer needs its goals")
    return recipe.align.steer


def _part(iteration: int) -> str:
    return f"steer-{iteration}"


def _fit_part(
    context: StageContext, iteration: int, data: list[TokenizedDataset], adapter: str
) -> dict[str, Any]:
    """Train one part, unless it has ended; the last one also makes the checkpoint.

    Args:
        context: the run.
        iteration: 0 for SteerLM 1, and the number of a round after it.
        data: what it trains on.
        adapter: folder of the adapter that it continues.

    Returns:
        `metrics` of the training, and `heldout` of the checkpoint.
    """
    recipe = context.recipe
    steer = section(recipe)
    part = _part(iteration)
    outputs: tuple[str, ...] = (layout.part_adapter(part), layout.part_merged(part))
    lineage: dict[str, object] = {}
    if iteration == steer.iterations:
        outputs = ()
        goal = steer.goals[0]
        lineage = {
            "iterations": steer.iterations,
            "goal": goal,
            "system": attribute_line(goal),
        }
    # The lineage holds the fingerprint of hh-sft's merged weights, which are the frozen
    # model's with an adapter.
    inputs = [pairs.HELDOUT, layout.checkpoint("hh-sft").lineage, adapter]
    train = partial(train_part, iteration=iteration, adapter=adapter, lineage=lineage)
    part_context = replace(context, recipe=_part_recipe(recipe, iteration))
    return launcher.fit(part_context, _STAGE, train, data, inputs, part, outputs)


def _part_recipe(recipe: Recipe, iteration: int) -> Recipe:
    """Return the recipe as one part reads it.

    What the part does not read is left out, so that another number of rounds repeats
    none that has ended.
    """
    align = recipe.align
    steer = section(recipe)
    changes: dict[str, object] = {"steer": None}
    if iteration:
        changes = {
            "steer": steer.model_copy(update={"iterations": iteration}),
            "learning_rate": steer.learning_rate or align.learning_rate,
            "epochs": steer.epochs or align.epochs,
            "batch": steer.batch or align.batch,
        }
    return recipe.model_copy(update={"align": align.model_copy(update=changes)})


def _sample_and_weigh(
    context: StageContext, steer: Steer, iteration: int, sampler_adapter: str
) -> steer_scores.Weighed:
    """Sample the answers of a round, score them on the workers, and weigh them."""
    answers_file = steer_samples.sample(context, steer, iteration)
    scores_part = f"{_part(iteration)}-scores"
    scores_folder = layout.part(scores_part)
    inputs = [
        answers_file,
        layout.checkpoint("hh-sft").lineage,
        layout.checkpoint("rm").lineage,
        sampler_adapter,
    ]
    score = partial(
        steer_scores.score, answers_file=answers_file, sampler_adapter=sampler_adapter
    )
    context.progress.say(f"round {iteration}: scoring the answers")
    score_context = replace(context, recipe=_part_recipe(context.recipe, 0))
    launcher.fit(
        score_context, _STAGE, score, [], inputs, scores_part, (scores_folder,)
    )
    folder = layout.part(_part(iteration))
    return steer_scores.weigh(context.store, steer, scores_folder, folder)


def _warn_if_low(context: StageContext, iteration: int, effective: float) -> None:
    if effective < _LOW_EFFECTIVE_SAMPLES:
        context.progress.say(
            f"warning: in round {iteration} of steer, only {effective:.2f} answers of a "
            "prompt carry the weight on average, so most of what was sampled teaches "
            "nothing. Shorter answers (align.steer.max_tokens) or goals nearer to what "
            "the model says help"
        )


def train_part(
    job: Job, iteration: int, adapter: str, lineage: dict[str, object]
) -> dict[str, object]:
    """Train one part on this worker; rank 0 then merges what it has learned.

    Args:
        job: of the part.
        iteration: 0 for SteerLM 1, and the number of a round after it.
        adapter: folder of the adapter that is continued.
        lineage: further fields of the checkpoint's lineage, for the last part; empty
            for the others.
    """
    from ray.train import get_context
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    tokenizer = load_tokenizer(job.recipe)
    build = trainers.steered if iteration else trainers.supervised
    train_state = loop.train(
        job,
        partial(_continue_adapter, job, adapter, is_round=iteration > 0),
        build(tokenizer, job.recipe.align),
    )
    # Free the trained model, so that the merged one can be made in its memory.
    gc.collect()
    # With ZeRO-3's settings, loading a model would wait for all workers.
    unset_hf_deepspeed_config()
    if get_context().get_world_rank() != 0:
        return {}
    heldout: dict[str, dict[str, object]] = {}
    if lineage:
        row_layout = Layout(train_state.passes.get("layout", "padded"))
        heldout = _make_checkpoint(job, tokenizer, row_layout, lineage)
    else:
        _merge(job, tokenizer)
    return {"metrics": loop.metrics(job, train_state), "heldout": heldout}


def _continue_adapter(
    job: Job,
    adapter: str,
    model: "PreTrainedModel",
    autocast_adapter_dtype: bool,
    is_round: bool,
) -> "PeftModel":
    """Put the adapter of the part before on the frozen model."""
    adapted_model = model_loading.with_adapter(
        model,
        str(job.store.path(adapter)),
        trainable=True,
        autocast_adapter_dtype=autocast_adapter_dtype,
    )
    if is_round:
        # Before the first step, ln Q must be the ln Q' that was computed without it.
        without_dropout(adapted_model)
    return adapted_model


def _make_checkpoint(
    job: Job,
    tokenizer: "PreTrainedTokenizerBase",
    row_layout: Layout,
    lineage: dict[str, object],
) -> dict[str, dict[str, object]]:
    """Make the stage's checkpoint of the last part's adapter."""
    store = job.store
    with store.writing(layout.checkpoint(job.checkpoint).adapter) as folder:
        shutil.copytree(store.path(job.adapter), folder, dirs_exist_ok=True)
    lora = job.recipe.hh_sft.lora  # it continues hh-sft's adapter
    return checkpoints.merge_and_score(job, tokenizer, lora, row_layout, lineage)


def _merge(job: Job, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Write the full model of a part, from which the next round samples."""
    store = job.store
    model = model_loading.load(
        job.recipe.base,
        model_loading.frozen_model_folder(job),
        device_map={"": model_loading.device(job)},
    )
    adapted_model = model_loading.with_adapter(model, str(store.path(job.adapter)))
    merged_model = adapters.merge(adapted_model)
    with store.writing(layout.part_merged(job.part)) as folder:
        adapters.save(merged_model, tokenizer, folder)


def _distances(by_step: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean distance D of the first and the last quarter of logged steps."""
    distances = [point["distance"] for point in by_step if "distance" in point]
    if not distances:
        return {"distance_first": None, "distance_last": None}
    count = max(1, int(len(distances) * _QUARTER))
    return {
        "distance_first": round(sum(distances[:count]) / count, 4),
        "distance_last": round(sum(distances[-count:]) / count, 4),
    }


def _sum_up(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of all parts as those of one training.

    Speed and settings are those of the last part. The losses are those of SteerLM 1: of
    a round, only the gradient of the loss means something.
    """
    metrics = dict(parts[-1])
    for name in ("loss_first", "loss_last"):
        metrics[name] = parts[0][name]
    for name in ("rows", "left_out", "steps"):
        metrics[name] = sum(part[name] for part in parts)
    reasons: dict[str, int] = {}
    by_step = []
    offset = 0
    for part in parts:
        for reason, count in part["left_out_because"].items():
            reasons[reason] = reasons.get(reason, 0) + count
        for point in part["by_step"]:
            by_step.append(point | {"step": point["step"] + offset})
        offset += part["steps"]
    return metrics | {"left_out_because": reasons, "by_step": by_step}
