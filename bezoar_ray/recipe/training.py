"""The sections of training: the base, its adapters, and one section for each stage."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bezoar_ray.recipe.model_sections import (
    Attribute,
    ModelSection,
    SourceSection,
    Weights,
)
from bezoar_ray.recipe.section import (
    FILES,
    RUNTIME_ONLY,
    Engine,
    Positive,
    PositiveRate,
    SchedulingSection,
    Section,
    Share,
    check_gpus,
    check_parallel,
)
from bezoar_ray.recipe.steering import Goal, Steer

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

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]

_COMPILE_MIN_STEPS = 200
"""Optimizer steps above which `compile: auto` compiles, since compiling takes about as
long as some tens of steps."""
_ENGINE_SHARE = 0.4
"""Of a GPU's memory, for vLLM beside a training that needs the rest."""


class Base(Weights):
    """The model that is trained."""

    model: Annotated[str, FILES]
    """Hugging Face name, local folder, or the embedded `tiny-base`."""
    license: str = "unknown"
    """License of the weights. The verdict on commercial use depends on it."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of the unquantized weights: for computing, merging and the saved
    model."""


class Lora(Section):
    """The LoRA adapter of one training stage."""

    # The defaults are those of the authors' published adapters.
    r: Positive = 16
    """Rank. A higher rank trains more weights and takes more memory."""
    alpha: float = 16
    """Scale of the adapter: its update is multiplied by alpha / r."""
    rank_stabilised: bool = False
    """Multiply the update by alpha / sqrt(r) instead (arXiv 2312.03732). Use it for
    high ranks."""
    dora: bool = False
    """Also train the magnitude of the weights (DoRA, arXiv 2402.09353). Such an adapter
    cannot be combined with others, so the checkpoint is served merged."""
    dropout: Share = 0.05
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Names of the linear layers that get an adapter."""


class Training(SchedulingSection):
    """One training stage."""

    learning_rate: PositiveRate
    """Peak learning rate."""
    # The paper gives none of these. Schedule, warm-up, batch, norm and sft's learning
    # rate are those of the QLoRA repository.
    schedule: Schedule = "constant_with_warmup"
    """Learning rate schedule, by the name that transformers gives it."""
    warmup_ratio: Share = 0.03
    """Share of the optimizer steps in which the learning rate rises to its peak."""
    epochs: PositiveRate = 1.0
    """Passes over all rows."""
    batch: Positive = 16
    """Rows in an optimizer step, over all workers and accumulation steps together. Must
    be a multiple of `workers`."""
    max_length: Positive = 2048
    """Maximum length of a row in tokens. A longer row is left out and counted, never
    cut."""
    max_grad_norm: float = 0.3
    """Norm to which gradients are clipped."""
    limit: Positive | None = None
    """Train only on the first rows, up to this number. All rows where empty."""
    load_in_4bit: bool = True
    """QLoRA: keep the base in 4 bits (NF4 with double quantization)."""
    packing: Annotated[bool, RUNTIME_ONLY] = True
    """Compute the rows of a pass one after the other in one sequence, in which no row
    sees another. With `false`, or where the architecture would mix the rows, each row
    is padded to the longest row of its pass."""
    micro_tokens: Annotated[Positive | Literal["auto"] | None, RUNTIME_ONLY] = None
    """Tokens in a forward pass of one worker. `auto`, the default on GPUs, takes the
    largest pass that fits into memory and is still faster than a smaller one."""
    micro_batch: Annotated[Positive | None, RUNTIME_ONLY] = None
    """Rows in a forward pass of one worker, to set instead of `micro_tokens`. The
    default on CPUs is 4."""
    workers: Annotated[Positive, RUNTIME_ONLY] = 1
    """Ray Train workers, which share the rows of each step."""
    cpus_per_worker: Annotated[float, RUNTIME_ONLY] = 1.0
    """Ray CPUs of each worker."""
    gpus_per_worker: Annotated[float, RUNTIME_ONLY] = 0.0
    """Ray GPUs of each worker. With 0 the stage trains on CPUs, even on a machine that
    has GPUs."""
    zero_stage: Annotated[Literal[0, 2, 3], RUNTIME_ONLY] = 0
    """DeepSpeed ZeRO stage. 0 is plain data parallel, 2 shares gradients and optimizer
    state over the workers. 3 also shares the weights, and needs `load_in_4bit:
    false`."""
    gradient_checkpointing: Annotated[bool | Literal["auto"], RUNTIME_ONLY] = "auto"
    """Recompute activations in the backward pass, which saves memory and costs time.
    `auto` does so only where passes would not fit into memory otherwise."""
    compile: Annotated[bool | Literal["auto"], RUNTIME_ONLY] = "auto"
    """Compile the decoder layers (torch.compile). `auto` does so on GPUs, in stages of
    more than 200 steps."""
    checkpoint_every: Annotated[Positive, RUNTIME_ONLY] = 200
    """Optimizer steps between checkpoints. A stage that was killed resumes from the
    last one. Lower it on spot instances."""
    max_failures: Annotated[int, RUNTIME_ONLY] = 3
    """Failures of workers after which all workers of the stage start again. The next
    one ends the stage. A node that Ray drains does not count. -1: no limit."""
    report_to: Annotated[tuple[str, ...], RUNTIME_ONLY] = ()
    """Experiment trackers, by the names that transformers gives them: `wandb`,
    `mlflow`, `tensorboard`."""

    @property
    def share(self) -> int:
        """Rows of an optimizer step that one worker computes."""
        return self.batch // self.workers

    @property
    def is_trained(self) -> bool:
        """Whether the stage leaves a checkpoint."""
        return True

    def compiles(self, steps: float) -> bool:
        """Whether a stage with this many optimizer steps compiles its layers."""
        if self.zero_stage == 3:
            # Compiling needs a trial pass, and under ZeRO-3 none runs before training.
            return False
        if self.compile == "auto":
            return self.gpus_per_worker > 0 and steps > _COMPILE_MIN_STEPS
        return self.compile

    @model_validator(mode="after")
    def _check_batch(self) -> "Training":
        if self.batch % self.workers:
            raise ValueError(
                f"batch {self.batch} cannot be shared by {self.workers} workers: choose "
                "a multiple of `workers`"
            )
        return self

    @model_validator(mode="after")
    def _check_pass_size(self) -> "Training":
        if self.micro_batch and self.micro_tokens:
            raise ValueError(
                f"micro_batch {self.micro_batch} and micro_tokens {self.micro_tokens}: "
                "give the size of a pass in rows or in tokens, not both"
            )
        return self

    @model_validator(mode="after")
    def _check_gpus(self) -> "Training":
        check_gpus("gpus_per_worker", self.gpus_per_worker)
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker:g} with {self.workers} workers: "
                "NCCL does not connect two workers on one GPU. Use one worker, or a whole "
                "GPU for each"
            )
        return self

    @model_validator(mode="after")
    def _check_zero_3(self) -> "Training":
        if self.load_in_4bit and self.zero_stage == 3:
            raise ValueError(
                "load_in_4bit with zero_stage 3: ZeRO-3 cannot shard bitsandbytes' 4-bit "
                "weights. Use zero_stage 2, or load_in_4bit: false"
            )
        return self


class Sft(Training):
    """Supervised fine-tuning on the accepted rows.

    One adapter is trained on the schemes in order.
    """

    learning_rate: PositiveRate = 2e-4
    lora: Lora = Lora()
    order: tuple[str, ...] = ("lamini", "orca", "evol_instruct")
    """Data sets in the order of training. Custom ones that are not named come last."""
    data: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], SourceSection] = {}
    """Rows of your own by name. A row has `instruction` and `response`, optionally
    `input` and `system`, or `prompt` and `completion`, or is a conversation. No gate or
    judge sees these rows."""
    adapter: Annotated[str | None, FILES] = None
    """A LoRA on the base to train further, instead of a new one: local folder or
    Hugging Face name."""


class HhSft(Training):
    """Supervised fine-tuning on the chosen side of HH-RLHF.

    It trains a new adapter on merged sft.
    """

    learning_rate: PositiveRate = 2e-4
    lora: Lora = Lora()


class Rm(Training):
    """The reward model, which rates answers by five attributes (arXiv 2406.08673).

    It trains a new adapter and a linear head on merged sft.
    """

    learning_rate: PositiveRate = 2e-4
    lora: Lora = Lora()
    order: Annotated[
        tuple[Literal["ratings", "preferences", "hh_rlhf"], ...], Field(min_length=1)
    ] = ("ratings", "preferences")
    """Data sets in the order of training: `ratings` (seeds.helpsteer), `preferences`
    (seeds.preferences) and `hh_rlhf` (seeds.hh_rlhf, each pair with strength 1). Those
    without rows are left out. Pairs fix only differences of scores, so put `ratings`
    last where the outputs are to be read as ratings."""
    loss: Literal["regular", "margin", "scaled"] = "scaled"
    """Loss of pairs, with the Bradley-Terry model on the score (arXiv 2410.01257).
    `margin` asks for a difference as large as the strength of the preference. `scaled`
    multiplies the loss by it."""
    weights: dict[Attribute, float] = {
        "helpfulness": 0.65,
        "correctness": 0.8,
        "coherence": 0.45,
        "complexity": 0.55,
        "verbosity": -0.4,
    }
    """Weights of the attributes in the score. An attribute that is not named has weight
    0. The defaults are those that HelpSteer2's authors searched for on RewardBench with
    a 70B model."""
    heldout_answers: Positive = 1000
    """Rated answers and preferences that are kept out of training, and measured. At
    most a fifth of all is kept out. All rows of one prompt are on the same side."""

    @model_validator(mode="after")
    def _check_weights(self) -> "Rm":
        if not any(self.weights.values()):
            raise ValueError(
                "weights: all are 0, so every answer has the same score. Give an "
                "attribute a weight, such as helpfulness: 1"
            )
        return self

    @model_validator(mode="after")
    def _check_float32_head(self) -> "Rm":
        if self.zero_stage == 3:
            raise ValueError(
                "zero_stage 3: the head of a reward model is in float32, and ZeRO-3 "
                "needs weights of one type. Use zero_stage 2"
            )
        return self


class StopAt(Section):
    """Limits at which `ppo` ends before its last iteration."""

    kl: PositiveRate | None = None
    """Mean KL divergence from the reference, in nats, summed over an episode's own
    tokens."""
    score: float | None = None
    """Mean score of an iteration's episodes, in standard deviations from the mean score
    of the reward model's held-out answers."""


class Ppo(Section):
    """Learning from the reward model: PPO, DR-PO, RLOO and GRPO.

    The defaults are those of DR-PO's paper and code (arXiv 2404.08495, table 5).
    `align.beta` is the weight of the KL penalty, which is 0.05 there. `align.batch` is
    the number of episodes of an iteration, 512 there.
    """

    reset: Share = 1.0
    """Share of episodes that begin with a prefix of the chosen answer. 1 is DR-PO, 0 is
    PPO. The prefix is of random length and never holds the whole answer."""
    advantage: Literal["gae", "rloo", "grpo"] = "gae"
    """How an answer is compared. `gae` learns a critic (arXiv 1506.02438). `rloo`
    (arXiv 2402.14740) and `grpo` (arXiv 2402.03300) compare it with the others of its
    group, which begin with the same prefix."""
    group: Positive = 1
    """Answers to each prompt of an iteration. `rloo` and `grpo` need at least two."""
    passes: Positive = 4
    """Optimizer steps on the episodes of an iteration, each over all of them."""
    temperature: PositiveRate = 0.7
    """Of the sampling. Log-probabilities are of the same temperature."""
    max_tokens: Positive = 53
    """Most tokens that the policy writes in an episode, after the prefix. An answer
    also ends where it reaches `max_length`, with its prompt."""
    unfinished_score: float = -1.0
    """Score of an answer that has no end, in place of the reward model's, in standard
    deviations."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far the ratio of new and old policy, and the critic's value, may move before
    the loss stops rewarding it (arXiv 1707.06347, eq. 7)."""
    value_weight: PositiveRate = 0.1
    """gae: weight of the critic's loss."""
    mask_forced: Literal["policy", "all"] = "policy"
    """Where tokens of the prefix do not count. `policy`: not in the policy's loss, as
    in DR-PO's code. `all`: nor in the critic's loss, the KL penalty and the whitening,
    as its text says."""
    stop_at: StopAt = StopAt()
    engine: Literal["transformers", "vllm"] = "transformers"
    """What samples the answers. `transformers` does it in the worker's own model, with
    the same result each time. `vllm` starts an engine beside each worker, on the same
    GPU, and is faster where answers are long or many."""
    engine_arguments: Engine = {}
    """vllm: extra engine arguments, such as `gpu_memory_utilization`, which is 0.4 here
    by default: the training needs the rest."""

    @property
    def engine_share(self) -> float:
        """Share of a GPU's memory that an engine beside the training takes."""
        if self.engine == "transformers":
            return 0.0
        share: float = self.engine_arguments.get(
            "gpu_memory_utilization", _ENGINE_SHARE
        )
        return share

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields, with the engine only where it changes the answers."""
        fields = super().fingerprint_fields()
        if self.engine == "transformers":
            # Also, run directories of earlier versions keep their fingerprints.
            del fields["engine"]
        return fields

    @model_validator(mode="after")
    def _check_group(self) -> "Ppo":
        if self.advantage != "gae" and self.group < 2:
            raise ValueError(
                f"group {self.group} with advantage {self.advantage}: an answer is "
                "compared with the others to its prompt. Set group to 2 or more, or "
                "advantage to gae"
            )
        return self


class Align(Training):
    """Preference alignment on the pairs of HH-RLHF.

    It trains hh-sft's adapter further. A frozen copy of that adapter is the reference.
    """

    # Not published: our choice, at the upper end of 5e-7 to 5e-6 for a LoRA.
    learning_rate: PositiveRate = 5e-6
    method: Literal["dpo", "kto", "orpo", "asft", "ppo", "steer", "none"] = "dpo"
    """How the policy learns. `dpo` and `kto` keep it near the reference, `orpo` and
    `asft` use none; these four learn from pairs. `ppo` learns from the score that the
    reward model `rm` gives to the policy's own answers. `steer` is SteerLM: it learns
    to give answers the ratings that the system message names. `none` ends the training
    at hh-sft."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """dpo, kto: how strongly the policy is kept near the reference (arXiv 2305.18290,
    eq. 7); a higher value keeps it nearer. orpo, asft: weight of the preference loss
    beside the likelihood of the chosen answer (lambda in their papers). ppo: weight of
    the KL penalty in the reward, for a score of standard deviation 1."""
    loss_type: Annotated[tuple[LossType, ...], Field(min_length=1)] = ("sigmoid",)
    """dpo: the loss, by the name that TRL gives it. Several losses are summed."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """dpo: assumed share of pairs that are the wrong way round. `robust` and `exo_pair`
    need it."""
    precompute_reference: Annotated[bool, RUNTIME_ONLY] = True
    """dpo, kto: compute the reference's log-probabilities once, before training. Runs
    with another beta use them again. With `false` they are computed in every step."""
    ppo: Ppo = Ppo()
    steer: Steer | None = None

    @property
    def goal(self) -> Goal | None:
        """The ratings that evaluations ask for. None where no goal steers the model."""
        if self.method != "steer" or self.steer is None:
            return None
        return self.steer.goals[0]

    @property
    def samplers(self) -> tuple[ModelSection, ...]:
        """The sections of the engines that sample beside the training."""
        if self.method != "steer" or not self.steer or not self.steer.iterations:
            return ()
        return (self.steer.sampling("align.steer.sampler"),)

    @property
    def is_trained(self) -> bool:
        """Whether the stage leaves a checkpoint."""
        return self.method != "none"

    def compiles(self, steps: float) -> bool:
        """Whether layers are compiled. ppo would compile each for every adapter."""
        return self.method != "ppo" and super().compiles(steps)

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields that decide the result; those of a method only for that one."""
        fields = super().fingerprint_fields()
        for method in ("ppo", "steer"):
            if self.method != method:
                # Also, run directories of earlier versions keep their fingerprints.
                del fields[method]
        return fields

    @model_validator(mode="after")
    def _check_ppo(self) -> "Align":
        if self.method != "ppo":
            return self
        if self.zero_stage:
            raise ValueError(
                f"zero_stage {self.zero_stage} with method ppo: it trains two adapters "
                "in turn on one model, and DeepSpeed shards one. Use zero_stage 0: both "
                "adapters are small, and load_in_4bit makes the model small"
            )
        check_parallel(self.ppo.engine_arguments, self.gpus_per_worker)
        if self.batch % (self.workers * self.ppo.group):
            raise ValueError(
                f"batch {self.batch} cannot be shared by {self.workers} workers in "
                f"groups of {self.ppo.group}: choose a multiple of "
                f"{self.workers * self.ppo.group}"
            )
        return self

    @model_validator(mode="after")
    def _check_steer(self) -> "Align":
        if self.method != "steer":
            return self
        if self.steer is None:
            raise ValueError(
                "method steer needs the section `steer` with its goals, such as "
                "steer: {goals: [{helpfulness: 4, verbosity: 2}]}"
            )
        batch = self.steer.batch or self.batch
        if batch % self.workers:
            raise ValueError(
                f"steer.batch {batch} cannot be shared by {self.workers} workers: "
                "choose a multiple of `workers`"
            )
        return self

    @model_validator(mode="after")
    def _check_label_smoothing(self) -> "Align":
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError(
                "loss_type exo_pair needs label_smoothing above 0, such as 0.001: it "
                "takes its logarithm"
            )
        return self
