"""The training loop of all stages: one adapter, trained on data sets in turn.

It resumes from Ray Train's last checkpoint.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Training
from bezoar_ray.runtime.gpus import GPUS, kind_of
from bezoar_ray.runtime.logs import event
from bezoar_ray.runtime.model_shapes import shape_of
from bezoar_ray.train import heldout_answers, model_loading, packing
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

T = TypeVar("T")
_LOGGED_POINTS = 200  # losses that are kept of a data set, about
_REDUCE_BUCKET = 50_000_000
"""Gradients that ZeRO sums at a time. Its default of 5e8 takes a GB that no trial of a
pass sees."""
_LAST_SHARE = 0.25  # of the logged steps, over which the reward accuracy is averaged


def train(
    job: Job, add_adapter: "Callable[..., PeftModel]", build_trainer: BuildTrainer
) -> TrainState:
    """Train an adapter on the job's data sets in their order, and save it.

    Neither the model nor a trainer is referenced afterwards, so that the checkpoint can
    be made in their memory.

    Args:
        job: the stage's job on this worker.
        add_adapter: puts the adapter on the stage's frozen model.
        build_trainer: builds the trainer of a data set.
    """
    section = job.section
    # ZeRO-3 gathers all weights into one buffer, so they must have one type.
    model = add_adapter(
        model_loading.for_training(job), autocast_adapter_dtype=section.zero_stage != 3
    )
    train_state, resume_from = last_checkpoint()
    event(
        "training resumes" if resume_from else "training begins",
        after_step=train_state.global_step,
    )
    if section.zero_stage != 3:
        without_input_gradients(model)
    row_layout = choose_layout(job, model)
    passes = Passes()
    if row_layout.because:
        passes.say(f"rows are padded: {row_layout.because}")
    datasets = [data for data in job.data if data.rows]
    total_steps = sum(_steps(data, section) for data in datasets)
    with packing.packed(model, row_layout):
        for data in datasets[train_state.dataset_index :]:
            # It ended between two data sets: of the last one, only
            # the adapter is needed.
            if resume_from and train_state.finished:
                _load_adapter(model, resume_from)
            else:
                rows = data.open(job.store)
                settings = trainer_arguments(job, data)
                trainer = keep_precision(
                    model, partial(build_trainer, model, rows, settings)
                )
                trainer.layout = row_layout
                # In this order: passes are chosen before anything is reported, and a
                # step that is not finite ends training before it could be saved.
                trainer.add_callback(fitting(trainer, job, data, passes, total_steps))
                trainer.add_callback(
                    stop_if_not_finite(trainer, job, data, train_state.offset)
                )
                trainer.add_callback(
                    reporter(job, train_state, data, total_steps, passes)
                )
                if resume_from and section.zero_stage == 0:
                    # Of a checkpoint with a frozen reference, transformers would load
                    # the reference alone.
                    _load_adapter(model, resume_from)
                trainer.train(resume_from_checkpoint=resume_from)
                # Not raised in the callback, which ends before the last
                # checkpoint is written.
                if train_state.stopped:
                    raise BezoarError(
                        "stopped, with a last checkpoint. Run the same command "
                        "to resume"
                    )
            # The next data set starts with the adapter, and with
            # an optimizer of its own.
            resume_from = None
            train_state.offset += _steps(data, section)
            train_state.dataset_index += 1
            train_state.finished = False
    save_adapter(job, model)
    return train_state


def choose_layout(job: Job, model: "PeftModel") -> Layout:
    """Choose how the rows of a pass are laid out, the same on all workers."""
    if not job.section.packing:
        return Layout("padded", "packing is false")
    if job.section.zero_stage == 3:
        reason = "under zero_stage 3 no pass can be tried before training"
        return Layout("padded", reason)
    row_layout = packing.choose(model)
    if row_layout.flat:
        failure = _flat_failure(job, model, row_layout)
        if failure:
            row_layout = Layout("padded", failure)
    # Workers exchange metrics in each pass, so all of them must make the same ones.
    if on_every_worker(row_layout.flat, model_loading.device(job)):
        return row_layout
    return Layout("padded", row_layout.because or "another worker pads its rows")


def _flat_failure(job: Job, model: "PeftModel", row_layout: Layout) -> str:
    """Return why a flat pass fails, forward or backward; empty if it does not.

    It is computed in the type of the training, while `packing.choose` uses float32.
    """
    import torch

    device = model_loading.device(job)
    ids = torch.zeros((2, 8), dtype=torch.long, device=device)
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=job.dtype == "bfloat16"
    )
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        with (
            packing.fused_head(model),
            packing.packed(model, row_layout),
            torch.random.fork_rng(),
            autocast,
        ):
            loss = packing.trial_loss(model, ids, labels=ids)
        # Not backward(), which would leave gradients for the first step.
        torch.autograd.grad(loss, trained, allow_unused=True)
    except Exception as error:  # for example a kernel that this GPU lacks
        return f"a flat pass fails: {packing.first_line(error)}"
    return ""


def _steps(data: TokenizedDataset, section: Training) -> int:
    """Return the optimizer steps on a data set."""
    steps_per_epoch = math.ceil(data.rows / section.batch)
    return max(1, math.ceil(steps_per_epoch * section.epochs))


def last_checkpoint() -> tuple[TrainState, str | None]:
    """Return the state of the last checkpoint, and its folder or None."""
    from ray.train import get_checkpoint

    checkpoint = get_checkpoint()
    if checkpoint is None:
        return TrainState(), None
    # A folder that this node sees is read in place; `to_directory` would copy it.
    is_remote = checkpoint.filesystem.type_name != "local"
    folder = checkpoint.to_directory() if is_remote else checkpoint.path
    train_state = TrainState.from_json((Path(folder) / STATE).read_bytes())
    # The state was saved in order to stop, and would stop this attempt as well.
    return replace(train_state, stopped=False), str(folder)


def _load_adapter(model: "PeftModel", folder: str) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(folder, device="cpu")
    set_peft_model_state_dict(model, weights, low_cpu_mem_usage=False)


def keep_precision(model: "PeftModel", build: Callable[[], T]) -> T:
    """Build a trainer and restore the float32 weights of the adapter.

    TRL rounds the adapter of a 4-bit model to bfloat16, whose spacing near 0.01 is
    6e-5. Steps at a learning rate of 5e-6 would round to nothing, and a continued
    adapter would lose what it has learned.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weights[name] = parameter.detach().clone()
    trainer = build()
    for name, parameter in model.named_parameters():
        if name in weights and parameter.dtype != weights[name].dtype:
            parameter.data = weights[name]
    return trainer


def trainer_arguments(job: Job, data: TokenizedDataset) -> dict[str, object]:
    """Return the arguments that all trainers of TRL and transformers share."""
    section = job.section
    steps = _steps(data, section)
    on_gpu = section.gpus_per_worker > 0
    return {
        # With a bucket, on the node's own disk: Ray Train uploads what is saved there.
        "output_dir": str(job.store.here(f"{job.folder}/work-{data.name}")),
        "num_train_epochs": section.epochs,
        # A worker's rows of a whole step; passes.py splits them.
        "per_device_train_batch_size": section.share,
        "gradient_accumulation_steps": 1,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.schedule,
        # Rounded up, a single step would be all warm-up.
        "warmup_steps": int(section.warmup_ratio * steps),
        "max_grad_norm": section.max_grad_norm,
        "max_length": None,  # rows that are too long were left out
        "bf16": job.dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "gradient_checkpointing": _recomputes(section),
        "gradient_checkpointing_kwargs": dict(RECOMPUTING),  # TRL writes into it
        "ddp_find_unused_parameters": False,
        "deepspeed": (
            deepspeed_config(section.zero_stage) if section.zero_stage else None
        ),
        "seed": job.recipe.seed,
        "data_seed": job.recipe.seed,
        "logging_steps": max(1, steps // _LOGGED_POINTS),
        "logging_first_step": True,
        # It would wait for the GPU after every pass; nonfinite.py checks once per step.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": section.checkpoint_every,
        "report_to": list(section.report_to) or "none",
        "run_name": f"{job.recipe.name}-{job.stage}-{data.name}",
        # One worker prepares the next steps while the GPU computes.
        "dataloader_num_workers": 1 if on_gpu else 0,
        "dataloader_pin_memory": on_gpu,
        "disable_tqdm": True,
    }


def _recomputes(section: Training) -> bool:
    """Whether activations are recomputed from the start.

    With `auto`, the first pass decides (fitting.py), except under ZeRO-3.
    """
    if section.gradient_checkpointing == "auto":
        return section.zero_stage == 3
    return section.gradient_checkpointing


def deepspeed_config(zero_stage: int) -> dict[str, object]:
    """Return DeepSpeed's configuration for a ZeRO stage (arXiv 1910.02054).

    Values of `auto` come from the trainer's arguments.
    """
    return {
        "zero_optimization": {
            "stage": zero_stage,
            "stage3_gather_16bit_weights_on_model_save": zero_stage == 3,
            "reduce_bucket_size": _REDUCE_BUCKET,
        },
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def save_adapter(job: Job, model: "PeftModel") -> None:
    """Write the adapter as a plain PEFT folder, without align's frozen reference."""
    from ray.train import get_context

    whole_weights: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if job.section.zero_stage == 3:  # every worker holds a shard of the adapter
        import deepspeed

        trained = [weight for weight in model.parameters() if weight.requires_grad]
        whole_weights = deepspeed.zero.GatheredParameters(trained)
    with whole_weights:
        if get_context().get_world_rank() == 0:
            with job.store.writing(job.adapter) as folder:
                model.save_pretrained(str(folder), selected_adapters=["default"])


def metrics(job: Job, train_state: TrainState) -> dict[str, Any]:
    """Return the metrics of a finished training, for summary.json."""
    losses = [point["loss"] for point in train_state.history]
    reasons = left_out(job.data)
    found = {
        "rows": sum(data.rows for data in job.data),
        "left_out": reasons.total(),
        "left_out_because": dict(reasons),
        "steps": train_state.offset,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "tokens_per_s": train_state.tokens_per_s,
        "of_peak": _share_of_peak(job, train_state),
        "time_shares": train_state.time_shares,
        "passes": train_state.passes,
        "by_step": train_state.history,
    }
    if train_state.looks:
        found["heldout_answers"] = heldout_answers.summary(train_state.looks)
    return found


def _share_of_peak(job: Job, train_state: TrainState) -> float | None:
    """Return the share of the GPUs' bfloat16 peak that training reaches.

    The peak is the manufacturer's. As usual, six operations are counted for each weight
    and token (arXiv 2204.02311, appendix B), of which frozen weights need four.
    Recomputation and a reference do not count.

    Returns:
        None if the GPU or the architecture is unknown, or without a GPU.
    """
    gpus = job.section.workers * job.section.gpus_per_worker
    if not gpus:
        return None
    kind = kind_of(model_loading.device_name(job))
    if kind is None:
        return None
    shape = shape_of(model_path(job.recipe.base.model))
    if not shape.known:
        return None
    # Of the two embeddings only the head multiplies; the other one is a look-up.
    weights = shape.linear_weights + shape.vocabulary * shape.hidden
    operations_per_s = 6 * weights * train_state.tokens_per_s
    peak = gpus * GPUS[kind].tflops * 1e12
    return round(operations_per_s / peak, 4)


def reward_accuracy(history: list[dict[str, float]]) -> float | None:
    """Return how often chosen answers are ahead in the last quarter of logged steps.

    With a reference, the chosen answer is ahead if it has gained more on the reference
    than the rejected one; without, if its mean log-probability is higher. None for kto,
    which looks at one side at a time.
    """
    shares = []
    for point in history:
        if "reward_accuracy" in point:
            shares.append(point["reward_accuracy"])
    if not shares:
        return None
    count = max(1, int(len(shares) * _LAST_SHARE))
    last_shares = shares[-count:]
    return round(sum(last_shares) / count, 4)
