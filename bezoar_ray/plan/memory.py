"""The GPU memory that each stage needs, and the largest training pass that fits.

These are estimates. Before its first step, training tries real passes
(train/fitting.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bezoar_ray.recipe import Align, ModelSection, Recipe, Rm, Serve, Training
from bezoar_ray.recipe.section import parallel_gpus
from bezoar_ray.runtime.gpus import ENGINE_SHARE, Gpu
from bezoar_ray.runtime.model_shapes import (
    USUAL_BILLIONS,
    Shape,
    billions_in,
    model_shape,
)
from bezoar_ray.train.pass_size import SPARE, PassSize, choose_size

GIB = 2**30
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_QUANTIZED_BYTES = {8: 1.0, 4: 0.56}
"""Bytes of a weight in quantized linear layers, with its scales, by its bits."""
_NAMED_BITS = (
    (r"(?<![a-z])(fp8|w8a8|int8|8bit)", 8),
    (r"(?<![a-z])(awq|gptq|int4|w4a16|(nv|mx)?fp4|4bit|bitsandbytes|bnb|gpt-oss)", 4),
)
"""Bits of a weight by words in a model's name or in `engine.quantization`."""
_NF4_BYTES = 0.516
"""Bytes of a weight in NF4 with double quantization."""
_TRAINED_BYTES = 16
"""Bytes of a trained weight: itself, its gradient and Adam's two moments, in
float32."""
_KEPT_BYTES = 3.34
"""Bytes of activations that a pass keeps of a token, for each input and output of a
layer's linear layers, in bfloat16. It matches passes that were measured on an H200."""
_KEPT_COMPILED = 0.85
"""Share of these bytes that compiled layers keep."""
_ENGINE_BYTES = 2 * GIB
"""What vLLM takes beside weights and cache: activations and CUDA graphs."""

_REMEDY_OF_PPO = (
    "ppo keeps the whole model on each GPU. For a larger model use OpenRLHF or verl, as "
    "docs/how-to/reinforcement-learning.md says"
)


@dataclass(frozen=True)
class MemoryNeed:
    """The GPU memory that one stage's model needs."""

    stage: str
    model: str
    gpu: Gpu
    least: float
    """GiB without which it cannot run."""
    fits: bool
    note: str
    """What it does with the rest of the GPU, or what it lacks."""
    known: bool
    """Whether the model's own shape is known. Otherwise its size is guessed."""

    def __str__(self) -> str:
        name = self.model.rpartition("/")[2]
        verdict = "fits" if self.fits else "DOES NOT FIT"
        text = f"{name}: at least {self.least:.1f} GiB, {self.note}: {verdict}"
        if self.known:
            return text
        billions = billions_in(self.model)
        if billions is None:
            guess = f"as if it had {USUAL_BILLIONS:g} billion weights"
        else:
            guess = f"by its {billions:g} billion weights"
        return f"{text} (its shape is not known; planned {guess})"


@dataclass(frozen=True)
class TrainingPass:
    """The largest pass that fits, as train/fitting.py would choose it."""

    size: PassSize
    tokens: int
    """Tokens of the longest such pass."""
    recomputed: bool
    """Whether activations are recomputed in the backward pass."""
    gib: float
    """GiB that it takes, with the model and the optimizer."""


def engine_need(
    stage: str, model: str, section: ModelSection | Serve, gpu: Gpu
) -> MemoryNeed:
    """The memory that vLLM needs of one GPU.

    It holds the GPU's share of the weights, and a cache for at least one sequence.
    """
    shape = model_shape(model)
    engine = section.engine
    # Data parallel replicas hold all weights each.
    spread = parallel_gpus(engine) // engine.get("data_parallel_size", 1)
    dtype_bytes = _DTYPE_BYTES.get(section.dtype, 2)
    linear_bytes = shape.linear_weights * _linear_weight_bytes(shape, model, section)
    embedding_bytes = shape.embedding_weights * dtype_bytes
    weight_bytes = (linear_bytes + embedding_bytes) / spread
    token_bytes = shape.kv_numbers * dtype_bytes / spread

    default_share = ENGINE_SHARE * min(1.0, section.num_gpus or 1.0)
    share = engine.get("gpu_memory_utilization", default_share)
    cache_bytes = share * gpu.memory * GIB - weight_bytes - _ENGINE_BYTES
    cache_tokens = cache_bytes / token_bytes
    context = _context_tokens(engine, shape)
    fits = cache_tokens >= context
    if cache_tokens < 1:
        note = "and no space is left for a cache"
    elif fits:
        note = f"with space for a cache of {cache_tokens:,.0f} tokens"
    else:
        request = "without engine.max_model_len it requests"
        if "max_model_len" in engine:
            request = "engine.max_model_len requests"
        note = (
            f"with space for a cache of {cache_tokens:,.0f} tokens, and {request} "
            f"{context:,}"
        )
    if spread > 1:
        note += f" on {spread} GPUs"
    least_bytes = weight_bytes + _ENGINE_BYTES + context * token_bytes
    return MemoryNeed(
        stage=stage,
        model=model,
        gpu=gpu,
        least=least_bytes / GIB,
        fits=fits,
        note=note,
        known=shape.known,
    )


def _context_tokens(engine: dict[str, Any], shape: Shape) -> int:
    """Tokens that an engine's cache must hold.

    1 where vLLM takes what fits (`auto`, -1), or where the model's context is not
    known.
    """
    length = engine.get("max_model_len", shape.context)
    if isinstance(length, str):
        length = _parse_length(length)
    if not length or length < 0:
        return 1
    return length


def _parse_length(text: str) -> int | None:
    """A length as vLLM reads it: 4k is 4,000, 4K is 4,096; None for `auto`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmKM]?)", text)
    if not match:
        return None
    units = {"": 1, "k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}
    number, unit = match.groups()
    return int(float(number) * units[unit])


def training_need(recipe: Recipe, stage: str, gpu: Gpu, compiled: bool) -> MemoryNeed:
    """The memory that QLoRA needs of one GPU: for its longest row, and for the merge.

    Args:
        recipe: has the stage, whose workers request a GPU or a share of one.
        stage: `sft`, `hh-sft` or `align`.
        gpu: the kind of the stage's GPUs.
        compiled: whether the layers are compiled, which then keep less.
    """
    model = recipe.base.model
    section = _as_trained(recipe.training(stage))
    shape = model_shape(model)
    memory = worker_memory(recipe, stage, gpu)
    # At the end, the adapter is merged into unquantized weights.
    merge_gib = shape.weights * _DTYPE_BYTES[recipe.base.dtype] / GIB
    estimate = _pass_estimate(recipe, stage, compiled)
    smallest_pass = PassSize(tokens=_longest_row(recipe, stage))
    may_recompute = section.gradient_checkpointing is not False
    least_gib = estimate(smallest_pass, may_recompute) / (1 - SPARE)

    largest_pass = training_pass(recipe, stage, memory, compiled)
    if largest_pass is None:
        note = f"no space for a row of {section.max_length:,} tokens"
    else:
        activations = "recomputed" if largest_pass.recomputed else "kept"
        note = (
            f"passes of up to {largest_pass.tokens:,} tokens take "
            f"{largest_pass.gib:.1f}, activations {activations}"
        )
    if merge_gib > memory:
        note += f", merging at the end takes {merge_gib:.1f}"
    fits = largest_pass is not None and merge_gib <= memory
    if not fits and isinstance(section, Align) and section.method == "ppo":
        note += f". {_REMEDY_OF_PPO}"
    return MemoryNeed(
        stage=stage,
        model=model,
        gpu=gpu,
        least=max(merge_gib, least_gib),
        fits=fits,
        note=note,
        known=shape.known,
    )


def training_pass(
    recipe: Recipe, stage: str, memory: float, compiled: bool
) -> TrainingPass | None:
    """The largest pass of a stage that fits into some GiB of memory.

    Returns:
        None if not even the longest row fits by itself.
    """
    section = _as_trained(recipe.training(stage))
    row = _longest_row(recipe, stage)
    estimate = _pass_estimate(recipe, stage, compiled)

    def fits(size: PassSize, recompute: bool) -> bool:
        return estimate(size, recompute) <= memory * (1 - SPARE)

    choice = choose_size(section, row, fits)
    if choice is None:
        return None
    size, recomputed = choice
    return TrainingPass(
        size=size,
        tokens=size.at_most(row, section.share),
        recomputed=recomputed,
        gib=estimate(size, recomputed),
    )


def _as_trained(section: Training) -> Training:
    """The section with its defaults under ZeRO-3, where training tries no pass.

    There, activations are recomputed unless the recipe forbids it.
    """
    if section.zero_stage == 3 and section.gradient_checkpointing == "auto":
        return section.model_copy(update={"gradient_checkpointing": True})
    return section


def worker_memory(recipe: Recipe, stage: str, gpu: Gpu) -> float:
    """GiB of GPU memory that a worker of a stage has: a whole GPU's, or its share.

    An engine that samples beside the training has its part already.
    """
    section = recipe.training(stage)
    memory = gpu.memory * min(1.0, section.gpus_per_worker)
    if isinstance(section, Align) and section.method == "ppo":
        memory -= gpu.memory * section.ppo.engine_share
    return memory


def _longest_row(recipe: Recipe, stage: str) -> int:
    """Tokens of the longest row. A pair has two sides, a group all its answers."""
    section = recipe.training(stage)
    has_pairs = isinstance(section, Align) and section.method not in ("ppo", "steer")
    if isinstance(section, Rm):
        has_pairs = bool({"preferences", "hh_rlhf"}.intersection(section.order))
    sides = 2 if has_pairs else 1
    if isinstance(section, Align) and section.samplers and section.steer:
        sides = section.steer.samples
    return recipe.training(stage).max_length * sides


def _pass_estimate(
    recipe: Recipe, stage: str, compiled: bool
) -> Callable[[PassSize, bool], float]:
    """The GiB that a pass takes, with the model and the optimizer.

    Returns:
        A function of the pass's size, and of whether activations are recomputed.
    """
    section = recipe.training(stage)
    shape = model_shape(recipe.base.model)
    # Activations were measured in bfloat16, which has two bytes.
    scale = _DTYPE_BYTES[recipe.base.dtype] / 2
    kept_bytes = _kept_bytes(shape) * scale
    if compiled:
        kept_bytes *= _KEPT_COMPILED
    # Recomputing keeps the inputs of all layers, and the activations of one layer.
    layer_inputs = 2 * shape.layers * shape.hidden
    one_layer = 2 * _kept_bytes(shape) / shape.layers
    recomputed_bytes = scale * (layer_inputs + one_layer)
    fixed_bytes = _fixed_bytes(recipe, stage, shape)
    row = _longest_row(recipe, stage)

    def estimate(size: PassSize, recompute: bool) -> float:
        token_bytes = recomputed_bytes if recompute else kept_bytes
        tokens = size.at_most(row, section.share)
        return (fixed_bytes + tokens * token_bytes) / GIB

    return estimate


def _kept_bytes(shape: Shape) -> float:
    """Bytes that the forward pass of a token keeps for the backward pass.

    With adapters on all linear layers, which is the largest case.
    """
    widths = sum(into + out for into, out in shape.linear.values())
    return _KEPT_BYTES * shape.layers * widths


def _fixed_bytes(recipe: Recipe, stage: str, shape: Shape) -> float:
    """Bytes of the model, the adapter and its optimizer.

    In a preference stage, the reference's adapter comes on top. ppo also has the reward
    model's, and trains a critic.
    """
    section = recipe.training(stage)
    # align continues hh-sft's adapter.
    lora = getattr(section, "lora", recipe.hh_sft.lora)
    dtype_bytes = _DTYPE_BYTES[recipe.base.dtype]
    linear_bytes = _NF4_BYTES if section.load_in_4bit else dtype_bytes
    weight_bytes = (
        shape.linear_weights * linear_bytes + shape.embedding_weights * dtype_bytes
    )
    widths = 0
    for name in lora.targets:
        if name in shape.linear:
            widths += sum(shape.linear[name])
    adapter_weights = shape.layers * lora.r * widths
    # Frozen copies are in float32, without a gradient or moments.
    frozen_adapters = 0
    trained_adapters = 1
    if isinstance(section, Align):
        is_ppo = section.method == "ppo"
        # steer has none: it compares with what was computed before the training.
        frozen_adapters = {"ppo": 2, "steer": 0}.get(section.method, 1)
        trained_adapters = 2 if is_ppo and section.ppo.advantage == "gae" else 1
    frozen_bytes = 4 * adapter_weights * frozen_adapters
    shards = section.workers if section.zero_stage == 3 else 1
    trained_bytes = adapter_weights * trained_adapters * _TRAINED_BYTES
    return (weight_bytes + trained_bytes) / shards + frozen_bytes


def _linear_weight_bytes(
    shape: Shape, model: str, section: ModelSection | Serve
) -> float:
    """Bytes of a weight in an engine's linear layers."""
    bits = shape.bits or _named_bits(model, section.engine)
    if bits in _QUANTIZED_BYTES:
        return _QUANTIZED_BYTES[bits]
    return _DTYPE_BYTES.get(section.dtype, 2)


def _named_bits(model: str, engine: dict[str, Any]) -> int | None:
    """Bits of a weight by the model's name or the engine's arguments, if they tell."""
    name = model.rpartition("/")[2]
    quantization = engine.get("quantization") or ""
    text = f"{name} {quantization}".lower()
    for pattern, bits in _NAMED_BITS:
        if re.search(pattern, text):
            return bits
    return None
