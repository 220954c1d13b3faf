"""The training stages `sft`, `hh-sft`, `rm` and `align`, and the one path that runs them.

`run` is carried out on the driver and `train_checkpoint` on each of Ray Train's
workers. A stage differs from the others only in the fields of its `TrainingStage`.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bezoar_ray import layout, sources
from bezoar_ray.data.sample_io import SampleFiles, sample_files
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Align, HhSft, Lora, Recipe, Rm, Sft, Training
from bezoar_ray.runtime.logs import event
from bezoar_ray.stages import BASE, STAGES, StageContext, StageResult, checkpoint_of
from bezoar_ray.train import (
    checkpoints,
    encoding,
    heldout_answers,
    launcher,
    loop,
    model_loading,
    online,
    pairs,
    rated_rows,
    reward_checkpoint,
    steer,
    trainers,
)
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.reporting import TrainState
from bezoar_ray.train.tokenized_dataset import TokenizedDataset, check_rows, prepare
from bezoar_ray.train.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingStage:
    """The differences between one training stage and the others."""

    name: str
    prepare: Callable[[StageContext], list[TokenizedDataset]]
    """Tokenizes its rows: the data sets that it trains on, in order."""
    inputs: tuple[str, ...]
    """Files and folders that its checkpoint depends on, besides the rows."""
    lora: Callable[[Recipe], Lora]
    """The recipe's settings of the adapter that it trains."""
    add_adapter: Callable[[Job, "PreTrainedModel", bool], "PeftModel"]
    """Puts that adapter on its frozen model; True stands for a float32 adapter."""
    build_trainer: Callable[["PreTrainedTokenizerBase", Any], trainers.BuildTrainer]
    """From (tokenizer, section of the recipe) to what builds a data set's trainer."""
    fit: Callable[[StageContext, list[TokenizedDataset]], dict[str, Any]] | None = None
    """Carries out several trainings in turn, where one is not enough, and returns the
    metrics by checkpoint."""
    train: Callable[[Job, "PreTrainedTokenizerBase"], TrainState] | None = None
    """Trains and saves the adapter by a loop of its own, without these trainers."""
    finish: Callable[
        [Job, "PreTrainedTokenizerBase", Lora, Layout], dict[str, dict[str, Any]]
    ] = checkpoints.merge_and_score
    """Makes the checkpoint of the trained adapter; returns metrics by checkpoint."""
    ensure_rows: Callable[[StageContext], int] | None = None
    """Writes the rows of its sources, unless they are there, and counts the malformed
    ones. None for rows of an earlier stage."""
    trains_on_pairs: bool = False
    """Whether its rows come from HH-RLHF's pairs."""
    compares_answers: bool = False
    """Whether its trainer logs how often the chosen answer is ahead."""


def run(context: StageContext) -> StageResult:
    """Carry out the training stage `context.stage`.

    Raises:
        BezoarError: there are no rows to train on, or training failed.
    """
    stage = training_stage(context.recipe, context.stage)
    store = context.store
    if not context.recipe.training(stage.name).is_trained:
        # One of an earlier recipe would still be served and measured.
        checkpoints.remove(store, *STAGES[stage.name].checkpoint_names)
        return StageResult([])

    # Load the pairs. Every checkpoint is scored on the held-out ones.
    pairs.ensure(context)
    if stage.trains_on_pairs and not pairs.read(store, "pairs"):
        raise BezoarError(
            f"{stage.name}: seeds.hh_rlhf gave no pairs to train on. Give a source "
            "that has some"
        )

    # Prepare the rows.
    datasets = stage.prepare(context)
    check_rows(context, stage.name, datasets)

    # Train, merge and score on the workers. The stage that trains on the base also
    # makes the checkpoint `base`.
    checkpoint = context.recipe.checkpoint(stage.name)
    names = [checkpoint]
    if checkpoint_of(checkpoint).parent == BASE:
        names.insert(0, BASE)
    # Before training begins: a running endpoint takes a checkpoint without a lineage
    # for one that is in training.
    checkpoints.remove(store, *{*names, *STAGES[stage.name].checkpoint_names})
    if stage.fit:
        metrics = stage.fit(context, datasets)
    else:
        metrics = launcher.fit(
            context, stage.name, train_checkpoint, datasets, list(stage.inputs)
        )
    if stage.ensure_rows:
        metrics[checkpoint]["seeds_failed"] = stage.ensure_rows(context)
    looks = metrics[checkpoint].get("heldout_answers")
    if looks and context.truth:
        heldout_answers.count_right(store, checkpoint, looks, context.truth)
    return StageResult(checkpoints.files(store, *names), {"train": metrics})


def train_checkpoint(job: Job) -> dict[str, object]:
    """Train a stage's adapter on this worker; rank 0 then merges and scores it.

    Returns:
        On rank 0, metrics by checkpoint for summary.json.
    """
    from ray.train import get_context
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    stage = training_stage(job.recipe, job.stage)
    tokenizer = load_tokenizer(job.recipe)
    if stage.train:
        train_state = stage.train(job, tokenizer)
    else:
        train_state = loop.train(
            job,
            partial(stage.add_adapter, job),
            stage.build_trainer(tokenizer, _runtime_section(job)),
        )

    # Free the trained model, so that the checkpoint can be made in its memory.
    gc.collect()
    # With ZeRO-3's settings, loading a model would wait for all workers.
    unset_hf_deepspeed_config()
    if get_context().get_world_rank() != 0:
        return {}
    row_layout = Layout(train_state.passes.get("layout", "padded"))
    scores = stage.finish(job, tokenizer, stage.lora(job.recipe), row_layout)
    metrics = loop.metrics(job, train_state)
    if stage.compares_answers:
        metrics["reward_accuracy"] = loop.reward_accuracy(train_state.history)
    return {**scores, job.checkpoint: {**metrics, **scores[job.checkpoint]}}


def _prepare_samples(context: StageContext) -> list[TokenizedDataset]:
    """Tokenize the accepted rows of each scheme that has some."""
    datasets = []
    for scheme in context.recipe.sft_order:
        if scheme in context.recipe.sft.data:
            files = _copy_custom_rows(context, scheme)
        else:
            files = sample_files(context.store, scheme, "accepted")
        if not files:
            context.progress.say(
                f"warning: {scheme} has no accepted rows, so sft does not train on it"
            )
            continue
        dataset = prepare(
            context,
            "sft",
            scheme,
            files,
            encoding.sample_tokens,
            encoding.CONVERSATION,
        )
        datasets.append(dataset)
    if not datasets:
        raise BezoarError(
            f"sft: none of {', '.join(context.recipe.sft_order)} has an accepted row "
            "to train on. `data` in summary.json counts rows by rejection reason. "
            "Lower filter.accept_rating, or look at the samples in data/*/rejected"
        )
    return datasets


def _copy_custom_rows(context: StageContext, name: str) -> list[str]:
    """Write the recipe's custom rows where the filter writes accepted ones.

    Returns:
        The names of the files.
    """
    loaded = sources.read_own(context.recipe.sft.data[name], name)
    pairs.name_malformed(context, loaded.failed, f"rows of {name}")
    files = SampleFiles(context.store, [name], ["accepted"])
    files.write(loaded.rows)
    return files.names


def _prepare_chosen(context: StageContext) -> list[TokenizedDataset]:
    """Tokenize the chosen conversations of HH-RLHF."""
    dataset = prepare(
        context,
        "hh-sft",
        "hh_rlhf",
        [pairs.file("sft")],
        encoding.chosen_tokens,
        encoding.CONVERSATION,
    )
    return [dataset]


def _prepare_pairs(context: StageContext) -> list[TokenizedDataset]:
    """Tokenize the pairs of HH-RLHF."""
    dataset = prepare(
        context,
        "align",
        "pairs",
        [pairs.file("pairs")],
        encoding.pair_tokens,
        encoding.PAIR,
    )
    return [dataset]


def _prepare_prompts(context: StageContext) -> list[TokenizedDataset]:
    """Tokenize the prompts of HH-RLHF's pairs, with their chosen answers."""
    dataset = prepare(
        context,
        "align",
        "prompts",
        [pairs.file("pairs")],
        encoding.prompt_tokens,
        encoding.PROMPT,
    )
    return [dataset]


def _prepare_steered(context: StageContext) -> list[TokenizedDataset]:
    """Tokenize rated answers whose ratings are in the system message."""
    rated_rows.ensure(context)
    dataset = prepare(
        context,
        "align",
        "ratings",
        [layout.rated("ratings", "train")],
        encoding.steered_tokens,
        encoding.CONVERSATION,
    )
    return [dataset]


def _prepare_ratings(context: StageContext) -> list[TokenizedDataset]:
    """Tokenize rated answers and preferences, in the order of the recipe."""
    rm = rated_rows.section(context.recipe)
    rated_rows.ensure(context)
    encodings = {
        "ratings": (encoding.rating_tokens, encoding.ANSWER, ("labels",)),
        "preferences": (encoding.preference_tokens, encoding.PAIR, ("strength",)),
        "hh_rlhf": (encoding.preference_tokens, encoding.PAIR, ("strength",)),
    }
    files = {
        "ratings": layout.rated("ratings", "train"),
        "preferences": layout.rated("preferences", "train"),
        "hh_rlhf": pairs.file("pairs"),
    }
    datasets = []
    for name in rm.order:
        if not _has_rows(context, name):
            continue
        encode, columns, values = encodings[name]
        dataset = prepare(context, "rm", name, [files[name]], encode, columns, values)
        datasets.append(dataset)
    if not datasets:
        raise BezoarError(
            f"rm: no rows to train on. rm.order is {', '.join(rm.order)}. Give "
            "seeds.helpsteer or seeds.preferences a source that has rows"
        )
    return datasets


def _has_rows(context: StageContext, name: str) -> bool:
    """Whether a data set of `rm.order` has rows to train on."""
    if name == "hh_rlhf":
        return bool(pairs.read(context.store, "pairs"))
    return rated_rows.count(context.store, name) > 0


def _add_adapter(
    job: Job, model: "PreTrainedModel", autocast_adapter_dtype: bool
) -> "PeftModel":
    """Add a new adapter, or the one that the recipe lets sft start from."""
    section = job.section
    assert isinstance(section, Sft | HhSft | Rm)
    if isinstance(section, Sft) and section.adapter:
        return model_loading.with_custom_adapter(
            model, section.adapter, section.lora, autocast_adapter_dtype
        )
    return model_loading.with_new_adapter(
        model, section.lora, job.recipe.seed, autocast_adapter_dtype
    )


def _continue_hh_sft_adapter(
    job: Job, model: "PreTrainedModel", autocast_adapter_dtype: bool
) -> "PeftModel":
    """Add hh-sft's adapter; DPO and KTO take a frozen copy of it as the reference."""
    folder = job.store.path(layout.checkpoint("hh-sft").adapter)
    return model_loading.with_adapter(
        model,
        str(folder),
        trainable=True,
        autocast_adapter_dtype=autocast_adapter_dtype,
    )


def _runtime_section(job: Job) -> Training:
    """Return the stage's section, with a live reference where workers share no disk.

    A precomputed reference is in a file. Workers on several nodes share it only if they
    share the run directory, which they do not if it is a bucket.
    """
    from ray.train import get_context

    section = job.section
    if not isinstance(section, Align) or not section.precompute_reference:
        return section
    context = get_context()
    several_nodes = context.get_local_world_size() < context.get_world_size()
    if not job.store.remote or not several_nodes:
        return section
    event(
        "the reference is computed in every step, since the run directory is a bucket "
        "and the workers are on several nodes"
    )
    return section.model_copy(update={"precompute_reference": False})


SFT = TrainingStage(
    name="sft",
    prepare=_prepare_samples,
    # They teach nothing, but every checkpoint records its score on them.
    inputs=(pairs.HELDOUT,),
    lora=lambda recipe: recipe.sft.lora,
    add_adapter=_add_adapter,
    build_trainer=trainers.supervised,
)
"""One adapter on the base, carried through the accepted rows of the schemes in turn."""

HH_SFT = TrainingStage(
    name="hh-sft",
    prepare=_prepare_chosen,
    # The lineage holds the fingerprint of sft's weights, and is small.
    inputs=(pairs.HELDOUT, layout.checkpoint("sft").lineage),
    lora=lambda recipe: recipe.hh_sft.lora,
    add_adapter=_add_adapter,
    build_trainer=trainers.supervised,
    ensure_rows=pairs.ensure,
    trains_on_pairs=True,
)
"""A new adapter on merged sft, trained on the chosen side of HH-RLHF."""

RM = TrainingStage(
    name="rm",
    prepare=_prepare_ratings,
    inputs=(*rated_rows.HELDOUT, pairs.HELDOUT, layout.checkpoint("sft").lineage),
    lora=lambda recipe: rated_rows.section(recipe).lora,
    add_adapter=_add_adapter,
    build_trainer=trainers.reward,
    ensure_rows=rated_rows.ensure,
    finish=reward_checkpoint.merge_and_measure,
)
"""A new adapter and a head on merged sft, trained on ratings and preferences."""

ALIGN = TrainingStage(
    name="align",
    prepare=_prepare_pairs,
    inputs=(pairs.HELDOUT, layout.checkpoint("hh-sft").lineage),
    lora=lambda recipe: recipe.hh_sft.lora,  # it continues hh-sft's adapter
    add_adapter=_continue_hh_sft_adapter,
    build_trainer=trainers.preference,
    ensure_rows=pairs.ensure,
    trains_on_pairs=True,
    compares_answers=True,
)
"""hh-sft's adapter, trained on pairs, by default with DPO (arXiv 2305.18290)."""

PPO = replace(
    ALIGN,
    prepare=_prepare_prompts,
    inputs=(*ALIGN.inputs, layout.checkpoint("rm").lineage),
    train=online.train,
    compares_answers=False,
)
"""hh-sft's adapter, trained by the reward model's score of its own answers."""

STEER = replace(
    ALIGN,
    prepare=_prepare_steered,
    fit=steer.fit,
    ensure_rows=rated_rows.ensure,
    compares_answers=False,
)
"""hh-sft's adapter, trained to give answers the ratings that the prompt names."""

_METHODS = {"ppo": PPO, "steer": STEER}
"""Methods of align that are more than another trainer."""

TRAINING_STAGES = {stage.name: stage for stage in (SFT, HH_SFT, RM, ALIGN)}


def training_stage(recipe: Recipe, name: str) -> TrainingStage:
    """Return a training stage, in the form of the method that the recipe chooses."""
    return _METHODS.get(recipe.checkpoint(name), TRAINING_STAGES[name])
