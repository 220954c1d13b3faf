"""The training loop that the three stages share: steps one after the other on one adapter, resumable at any moment."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Lora, Training
from bezoar_ray.runtime.gpus import GPUS, kind_of
from bezoar_ray.runtime.logs import event
from bezoar_ray.runtime.model_shapes import shape_of
from bezoar_ray.train import model_loading, packing
from bezoar_ray.train.checkpoints import finish
from bezoar_ray.train.fitting import (
    RECOMPUTING,
    Passes,
    fitting,
    on_every_worker,
    without_input_gradients,
)
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.nonfinite import stop_if_not_finite
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.reporting import STATE, TrainState, reporter
from bezoar_ray.train.tokenized_dataset import TokenizedDataset, left_out
from bezoar_ray.train.trainers import BuildTrainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
_BUCKET = 50_000_000  # gradients that ZeRO sums at a time; its own 5e8 take a GB that no trial of a pass sees
POINTS = 200  # at most so many losses are kept of a step


def train(
    job: Job, adapt: "Callable[..., PeftModel]", build: BuildTrainer
) -> TrainState:
    """Train an adapter on the job's data sets in their order and save it; goes on from Ray Train's last checkpoint.

    `adapt` puts the adapter on the stage's frozen model. No reference to either is left, so that the checkpoint can
    be made in the memory that they took.
    """
    # ZeRO-3 gathers all weights into one buffer: they must be of one type.
    model = adapt(
        model_loading.for_training(job),
        autocast_adapter_dtype=job.section.zero_stage != 3,
    )
    train_state, saved = _last()
    event(
        "training goes on" if saved else "training begins",
        after_step=train_state.global_step,
    )
    if job.section.zero_stage != 3:
        without_input_gradients(model)
    layout, passes = _layout(job, model), Passes()
    if layout.because:
        passes.say(f"rows are padded: {layout.because}")
    sets = [data for data in job.data if data.rows]
    total = sum(_length(data, job.section) for data in sets)
    with packing.packed(model, layout):
        for data in sets[train_state.dataset_index :]:
            if saved and train_state.finished:
                _load_adapter(model, saved)
            else:
                trainer = keep_precision(
                    model,
                    partial(build, model, data.open(job.store), arguments(job, data)),
                )
                trainer.layout = layout
                trainer.add_callback(fitting(trainer, job, data, passes, total))
                trainer.add_callback(
                    stop_if_not_finite(trainer, job, data, train_state.offset)
                )
                trainer.add_callback(reporter(job, train_state, data, total, passes))
                if saved and not job.section.zero_stage:
                    _load_adapter(
                        model, saved
                    )  # transformers would load the frozen reference beside it alone
                trainer.train(resume_from_checkpoint=saved)
                if train_state.stopped:
                    raise BezoarError(
                        "stopped, with a last checkpoint; the same command goes on from there"
                    )
            saved = None
            train_state.offset += _length(data, job.section)
            train_state.dataset_index, train_state.finished = (
                train_state.dataset_index + 1,
                False,
            )
    _save_adapter(job, model)
    return train_state


def _layout(job: Job, model: "PeftModel") -> Layout:
    """How rows lie in the passes of a model that is trained."""
    if not job.section.packing:
        return Layout("padded", "packing is false")
    if job.section.zero_stage == 3:
        return Layout(
            "padded", "under zero_stage 3 no pass can be tried before training"
        )
    layout = packing.choose(model)
    if layout.flat and (failure := _fails(job, model, layout)):
        layout = Layout("padded", failure)
    return (
        layout
        if on_every_worker(layout.flat, model_loading.device(job))
        else Layout("padded", layout.because or "elsewhere")
    )


def _fails(job: Job, model: "PeftModel", layout: Layout) -> str:
    """Why a flat pass fails in the type that training computes in, forward or backward; empty where it does not."""
    import torch

    device = model_loading.device(job)
    ids = torch.zeros((2, 8), dtype=torch.long, device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=job.dtype == "bfloat16"
    )
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        with (
            packing.fused_head(model),
            packing.packed(model, layout),
            torch.random.fork_rng(),
            autocast,
        ):
            loss = model(**batch, fused_lm_head=True).log_probs.sum()
        torch.autograd.grad(loss, trained, allow_unused=True)
    except Exception as error:  # of a kernel that this GPU lacks, for one
        return f"a flat pass fails: {packing.first_line(error)}"
    return ""


def _length(data: TokenizedDataset, part: Training) -> int:
    """Optimiser steps on a data set."""
    return max(1, math.ceil(math.ceil(data.rows / part.batch) * part.epochs))


def _last() -> tuple[TrainState, str | None]:
    """Where the loop was when it was last saved, and the folder it was saved in."""
    from ray.train import get_checkpoint

    checkpoint = get_checkpoint()
    if checkpoint is None:
        return TrainState(), None
    remote = checkpoint.filesystem.type_name != "local"
    folder = Path(checkpoint.to_directory() if remote else checkpoint.path)
    return replace(
        TrainState.from_json((folder / STATE).read_bytes()), stopped=False
    ), str(folder)


def _load_adapter(model: "PeftModel", folder: str) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(
        model, load_peft_weights(folder, device="cpu"), low_cpu_mem_usage=False
    )


def keep_precision(model: "PeftModel", make: Callable[[], T]) -> T:
    """A trainer whose adapter keeps its float32 weights.

    TRL rounds the adapter of a 4-bit model to bfloat16, whose spacing near 0.01 is 6e-5: steps of a learning rate of
    5e-6 would round to nothing, and an adapter carried on would lose what it has learned.
    """
    weights = {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    trainer = make()
    for name, parameter in model.named_parameters():
        if name in weights and parameter.dtype != weights[name].dtype:
            parameter.data = weights[name]
    return trainer


def arguments(job: Job, data: TokenizedDataset) -> dict[str, object]:
    """Keyword arguments that TRL's configurations share, from the recipe."""
    part, recipe = job.section, job.recipe
    length = _length(data, part)
    on_gpu = part.gpus_per_worker > 0
    return {
        "output_dir": str(job.store.here(f"{job.folder}/work-{data.name}")),
        "num_train_epochs": part.epochs,
        "per_device_train_batch_size": part.share,  # a worker's rows of a step; passes.py splits them
        "gradient_accumulation_steps": 1,
        "learning_rate": part.learning_rate,
        "lr_scheduler_type": part.schedule,
        "warmup_steps": int(
            part.warmup_ratio * length
        ),  # rounded up, a single step would be all warm-up
        "max_grad_norm": part.max_grad_norm,
        "max_length": None,  # rows that are too long have been left out, not cut
        "bf16": job.dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "gradient_checkpointing": _recomputes(part),
        "gradient_checkpointing_kwargs": dict(RECOMPUTING),  # TRL writes into it
        "ddp_find_unused_parameters": False,
        "deepspeed": zero(part.zero_stage) if part.zero_stage else None,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "logging_steps": max(1, length // POINTS),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it waits for the GPU after every pass; nonfinite.py looks once a step
        "save_strategy": "steps",
        "save_steps": part.checkpoint_every,
        "report_to": list(part.report_to) or "none",
        "run_name": f"{recipe.name}-{job.stage}-{data.name}",
        "dataloader_num_workers": int(
            on_gpu
        ),  # prepares the next steps while the GPU works on this one
        "dataloader_pin_memory": on_gpu,
        "disable_tqdm": True,
    }


def _recomputes(part: Training) -> bool:
    """Whether activations are recomputed from the start; left to choose, the first pass decides (fitting.py)."""
    if part.gradient_checkpointing == "auto":
        return part.zero_stage == 3
    return part.gradient_checkpointing


def zero(stage: int) -> dict[str, object]:
    """DeepSpeed's settings for a ZeRO stage (arXiv 1910.02054); sizes come from the trainer's arguments."""
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": stage == 3,
            "reduce_bucket_size": _BUCKET,
        },
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def _save_adapter(job: Job, model: "PeftModel") -> None:
    """Write the adapter as a plain PEFT folder; align's frozen reference stays out."""
    from ray.train import get_context

    with _whole(job, model):
        if get_context().get_world_rank() == 0:
            with job.store.writing(layout.checkpoint(job.checkpoint).adapter) as folder:
                model.save_pretrained(str(folder), selected_adapters=["default"])


def _whole(job: Job, model: "PeftModel") -> contextlib.AbstractContextManager[object]:
    """The adapter in one piece: under ZeRO-3 every worker holds a share of it."""
    if job.section.zero_stage != 3:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(
        [p for p in model.parameters() if p.requires_grad]
    )


def close(
    job: Job,
    tokenizer: "PreTrainedTokenizerBase",
    lora: Lora,
    train_state: TrainState,
    figures: dict[str, object],
) -> dict[str, object]:
    """Let rank 0 make the checkpoint of the saved adapter; returns what the stage puts into the summary."""
    import gc

    from ray.train import get_context
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # or ZeRO-3 would wait for all workers to load their share
    gc.collect()
    if get_context().get_world_rank() != 0:
        return {}
    scores = finish(
        job, tokenizer, lora, Layout(train_state.passes.get("layout", "padded"))
    )
    return {**scores, job.checkpoint: {**figures, **scores[job.checkpoint]}}


def figures(job: Job, train_state: TrainState) -> dict[str, object]:
    """The stage's part of the summary."""
    losses = [point["loss"] for point in train_state.history]
    reasons = left_out(job.data)
    return {
        "rows": sum(data.rows for data in job.data),
        "left_out": reasons.total(),
        "left_out_because": dict(reasons),
        "steps": train_state.offset,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "tokens_per_s": train_state.tokens_per_s,
        "of_peak": _of_peak(job, train_state),
        "time_shares": train_state.time_shares,
        "passes": train_state.passes,
        "by_step": train_state.history,
    }


def _of_peak(job: Job, train_state: TrainState) -> float | None:
    """The share of the GPUs' bfloat16 peak, by their maker, that training takes; None where either is unknown.

    By the usual count of six operations for each weight and token (arXiv 2204.02311, appendix B), of which frozen
    weights need four. Recomputation and a reference do not count.
    """
    gpus = job.section.workers * job.section.gpus_per_worker
    kind = kind_of(model_loading.device_name(job)) if gpus else None
    if kind is None:
        return None
    shape = shape_of(model_path(job.recipe.base.model))
    if not shape.known:
        return None
    weights = shape.linear_weights + shape.vocabulary * shape.hidden
    return round(
        6 * weights * train_state.tokens_per_s / (gpus * GPUS[kind].tflops * 1e12), 4
    )
