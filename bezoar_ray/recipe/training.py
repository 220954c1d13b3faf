"""Training: the base, its adapters, and one section per stage."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bezoar_ray.recipe.model_sections import SourceSection, Weights
from bezoar_ray.recipe.section import (
    FILES,
    RUNTIME_ONLY,
    Positive,
    PositiveRate,
    SchedulingSection,
    Section,
    Share,
    check_gpus,
)

LossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


COMPILED_FROM = 200
"""Optimiser steps of a stage from which on `compile: auto` compiles: it takes as long as some tens of steps."""

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]


class Base(Weights):
    """The model that is trained."""

    model: Annotated[str, FILES]
    """Hugging Face name, local folder, or `tiny-base`."""
    license: str = "unknown"
    """Licence of the weights."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the unquantised weights: compute, merge and the saved model."""


class Lora(Section):
    """The adapter of one training stage."""

    r: Positive = 16
    """Rank."""
    alpha: float = 16
    """Scale; the update is multiplied by alpha / r."""
    rank_stabilised: bool = False
    """Multiply it by alpha / sqrt(r) instead (arXiv 2312.03732)."""
    dora: bool = False
    """Train the weights' magnitude, too (DoRA, arXiv 2402.09353); such an adapter cannot be joined with others."""
    dropout: Share = 0.05
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Names of the linear layers that get an adapter."""


class Training(SchedulingSection):
    """One training stage."""

    learning_rate: PositiveRate
    """Peak learning rate."""
    schedule: Schedule = "constant_with_warmup"
    """Learning-rate schedule, by transformers' name."""
    warmup_ratio: Share = 0.03
    """Share of the steps that warm up."""
    epochs: PositiveRate = 1.0
    """Passes over the rows."""
    batch: Positive = 16
    """Rows in an optimiser step, over all workers and accumulation steps."""
    max_length: Positive = 2048
    """Longest row in tokens; a longer one is left out and counted."""
    max_grad_norm: float = 0.3
    """Gradient clipping."""
    limit: Positive | None = None
    """Train on the first so many rows."""
    load_in_4bit: bool = True
    """QLoRA: the base in NF4 with double quantisation."""
    packing: Annotated[bool, RUNTIME_ONLY] = True
    """Compute the rows of a pass one after the other in one sequence, where they do not see each other. Where the
    architecture would mix them, or with `false`, each row is padded to the longest of its pass."""
    micro_tokens: Annotated[Positive | Literal["auto"] | None, RUNTIME_ONLY] = None
    """Tokens in a forward pass of one worker. `auto`, the default on GPUs: as many as fit, and as are of use."""
    micro_batch: Annotated[Positive | None, RUNTIME_ONLY] = None
    """Rows in a forward pass of one worker, in place of `micro_tokens`; 4 by default on CPUs."""
    workers: Annotated[Positive, RUNTIME_ONLY] = 1
    """Ray Train workers."""
    cpus_per_worker: Annotated[float, RUNTIME_ONLY] = 1.0
    """Ray CPUs per worker."""
    gpus_per_worker: Annotated[float, RUNTIME_ONLY] = 0.0
    """Ray GPUs per worker."""
    zero_stage: Annotated[Literal[0, 2, 3], RUNTIME_ONLY] = 0
    """DeepSpeed ZeRO stage; 0 is plain data parallel."""
    gradient_checkpointing: Annotated[bool | Literal["auto"], RUNTIME_ONLY] = "auto"
    """Recompute activations in the backward pass. `auto`: only where passes would not fit into memory without it."""
    compile: Annotated[bool | Literal["auto"], RUNTIME_ONLY] = "auto"
    """Compile the decoder layers (torch.compile). `auto`: on GPUs, for stages of more than 200 steps."""
    checkpoint_every: Annotated[Positive, RUNTIME_ONLY] = 200
    """Steps between checkpoints from which a killed stage goes on."""
    max_failures: Annotated[int, RUNTIME_ONLY] = 3
    """Worker failures after which Ray Train gives up."""
    report_to: Annotated[tuple[str, ...], RUNTIME_ONLY] = ()
    """Trackers by transformers' names: wandb, mlflow, tensorboard."""

    @property
    def share(self) -> int:
        """Rows of an optimiser step that a worker has."""
        return self.batch // self.workers

    @property
    def is_trained(self) -> bool:
        """Whether the stage leaves a checkpoint."""
        return True

    def compiles(self, steps: float) -> bool:
        """Whether a stage of so many optimiser steps is to compile its layers."""
        if self.zero_stage == 3:  # no pass can be tried before training
            return False
        if self.compile == "auto":
            return self.gpus_per_worker > 0 and steps > COMPILED_FROM
        return self.compile

    @model_validator(mode="after")
    def _even_shares(self) -> "Training":
        if self.batch % self.workers:
            raise ValueError(
                f"batch {self.batch} cannot be shared by {self.workers} workers: choose a multiple"
            )
        return self

    @model_validator(mode="after")
    def _one_size(self) -> "Training":
        if self.micro_batch and self.micro_tokens:
            raise ValueError(
                f"micro_batch {self.micro_batch} and micro_tokens {self.micro_tokens}: give the size of a pass in rows "
                "or in tokens, not both"
            )
        return self

    @model_validator(mode="after")
    def _whole_gpus(self) -> "Training":
        check_gpus("gpus_per_worker", self.gpus_per_worker)
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker:g} with {self.workers} workers: NCCL does not connect two "
                "workers on one GPU. Use one worker, or a whole GPU for each"
            )
        return self

    @model_validator(mode="after")
    def _no_sharded_4bit(self) -> "Training":
        if self.load_in_4bit and self.zero_stage == 3:
            raise ValueError(
                "load_in_4bit with zero_stage 3: ZeRO-3 cannot shard bitsandbytes' 4-bit weights. "
                "Use zero_stage 2, or load_in_4bit: false"
            )
        return self


class Sft(Training):
    """Supervised fine-tuning on the accepted rows, one adapter carried through the schemes in order."""

    learning_rate: PositiveRate = 2e-4
    lora: Lora = Lora()
    order: tuple[str, ...] = ("lamini", "orca", "evol_instruct")
    """The data sets, in the order of training; own ones that are not named come last."""
    data: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], SourceSection] = {}
    """Rows of your own by name, with `instruction`, and if need be `input` and `system`, and `response`. They are
    trained on as they are: no gate or judge sees them."""
    adapter: Annotated[str | None, FILES] = None
    """A LoRA on the base to go on with, in place of a new one: local folder or Hugging Face name."""


class HhSft(Training):
    """Supervised fine-tuning on the chosen side of HH-RLHF: a new adapter on merged sft."""

    learning_rate: PositiveRate = 2e-4
    lora: Lora = Lora()


class Align(Training):
    """Preference alignment: goes on with hh-sft's adapter, whose frozen copy is the reference."""

    learning_rate: PositiveRate = 5e-6
    method: Literal["dpo", "kto", "orpo", "asft", "none"] = "dpo"
    """How pairs are learned from: dpo and kto hold to the reference; orpo and asft know none. none ends at hh-sft."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """dpo, kto: how strongly the policy is held to the reference (arXiv 2305.18290, eq. 7). orpo, asft: weight of the
    preferences beside the likelihood of the chosen answer (their lambda)."""
    loss_type: Annotated[tuple[LossType, ...], Field(min_length=1)] = ("sigmoid",)
    """dpo's loss, by TRL's name; the sum of several."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """dpo: how often a pair is thought to be the wrong way round, for the losses that ask."""
    precompute_reference: Annotated[bool, RUNTIME_ONLY] = True
    """dpo, kto: ask the reference once, before training; its answers are kept for runs with another beta."""

    @property
    def is_trained(self) -> bool:
        """Whether the stage leaves a checkpoint."""
        return self.method != "none"

    @model_validator(mode="after")
    def _smoothed(self) -> "Align":
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError(
                "loss_type exo_pair needs label_smoothing above 0, such as 0.001: it takes its logarithm"
            )
        return self
