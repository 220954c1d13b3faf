"""What each stage takes of a GPU's memory, and the largest training pass that fits."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bezoar_ray.recipe import ModelSection, Recipe, Serve, Training
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
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_QUANTISED = {8: 1.0, 4: 0.56}
"""Bytes of a weight in quantised linear maps, with its scales, by its bits."""
_NAMED_BITS = (
    (r"(?<![a-z])(fp8|w8a8|int8|8bit)", 8),
    (r"(?<![a-z])(awq|gptq|int4|w4a16|(nv|mx)?fp4|4bit|bitsandbytes|bnb|gpt-oss)", 4),
)
"""Bits by what a model's name or `engine.quantization` says."""
_NF4 = 0.516  # bytes of a weight in NF4 with double quantisation
_TRAINED = 16  # bytes of a trained weight: itself, its gradient and Adam's two moments, in float32
_KEPT = 3.34  # bytes that a pass keeps of a token for each width of a layer's linear maps; compiled layers keep less
_KEPT_COMPILED = 0.85  # of that
_ENGINE = 2 * GIB  # what vLLM takes beside weights and cache: activations, CUDA graphs


@dataclass(frozen=True)
class MemoryNeed:
    """What one stage's model needs of one GPU."""

    stage: str
    model: str
    gpu: Gpu
    least: float
    """GiB without which it cannot run."""
    fits: bool
    note: str
    """What it does with the rest of the GPU, or what it lacks."""
    known: bool
    """Whether the model's own shape is known."""

    def __str__(self) -> str:
        sized = billions_in(self.model)
        guess = (
            f"as if it had {USUAL_BILLIONS:g} billion weights"
            if sized is None
            else f"by its {sized:g} billion weights"
        )
        unsure = "" if self.known else f" (its shape is not known; planned {guess})"
        verdict = "fits" if self.fits else "DOES NOT FIT"
        return f"{self.model.rpartition('/')[2]}: at least {self.least:.1f} GiB, {self.note}: {verdict}{unsure}"


@dataclass(frozen=True)
class TrainingPass:
    """The largest pass that fits, as train/fitting.py would choose it."""

    size: PassSize
    tokens: int
    """Of the longest such pass."""
    recomputed: bool
    """Whether activations are recomputed in the backward pass."""
    gib: float
    """With the model and the optimiser."""


def engine_need(
    stage: str, model: str, part: ModelSection | Serve, gpu: Gpu
) -> MemoryNeed:
    """vLLM on a GPU: its share of the weights, and a cache that holds one sequence at least."""
    shape = model_shape(model)
    spread = parallel_gpus(part.engine) // part.engine.get("data_parallel_size", 1)
    of_type = _BYTES.get(part.dtype, 2)
    weights = (
        shape.linear_weights * _weight_bytes(shape, model, part)
        + shape.embedding_weights * of_type
    ) / spread
    token = shape.kv_numbers * of_type / spread
    share = part.engine.get(
        "gpu_memory_utilization", ENGINE_SHARE * min(1.0, part.num_gpus or 1.0)
    )
    cache = (share * gpu.memory * GIB - weights - _ENGINE) / token
    context = _context(part.engine, shape)
    fits = cache >= context
    if cache < 1:
        note = "and no room is left for a cache"
    elif fits:
        note = f"with room for a cache of {cache:,.0f} tokens"
    else:
        asks = (
            "engine.max_model_len asks"
            if "max_model_len" in part.engine
            else "without engine.max_model_len it asks"
        )
        note = (
            f"with room for a cache of {cache:,.0f} tokens, and {asks} for {context:,}"
        )
    note += f" on {spread} GPUs" if spread > 1 else ""
    return MemoryNeed(
        stage,
        model,
        gpu,
        (weights + _ENGINE + context * token) / GIB,
        fits,
        note,
        shape.known,
    )


def _context(engine: dict[str, Any], shape: Shape) -> int:
    """Tokens that an engine's cache has to hold; 1 where vLLM takes what fits, or where nobody knows."""
    told = engine.get("max_model_len", shape.context)
    if isinstance(told, str):
        number = re.fullmatch(
            r"(\d+(?:\.\d+)?)([kmKM]?)", told
        )  # vLLM's own: 4k is 4,000, 4K is 4,096
        units = {"": 1, "k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}
        told = int(float(number.group(1)) * units[number.group(2)]) if number else None
    return told if told and told > 0 else 1


def training_need(recipe: Recipe, stage: str, gpu: Gpu, compiled: bool) -> MemoryNeed:
    """QLoRA on a GPU: what a pass of the longest row takes, and the largest pass that fits.

    Args:
        recipe: has the stage, whose workers ask for a GPU or a share of one.
        stage: `sft`, `hh-sft` or `align`.
        gpu: one of the stage's.
        compiled: whether the layers are compiled, which keep less.
    """
    model, part = recipe.base.model, _as_trained(recipe.training(stage))
    shape = model_shape(model)
    memory = worker_memory(recipe, stage, gpu)
    merged = shape.weights * _BYTES[recipe.base.dtype] / GIB  # at the end, unquantised
    takes = _takes(recipe, stage, compiled)
    shortest = takes(
        PassSize(tokens=_longest(recipe, stage)),
        part.gradient_checkpointing is not False,
    )
    found = training_pass(recipe, stage, memory, compiled)
    if found is None:
        note = f"no room for a row of {part.max_length:,} tokens"
    else:
        how = "recomputed" if found.recomputed else "kept"
        note = f"passes of up to {found.tokens:,} tokens take {found.gib:.1f}, activations {how}"
    if merged > memory:
        note += f", merging at the end takes {merged:.1f}"
    fits = found is not None and merged <= memory
    return MemoryNeed(
        stage, model, gpu, max(merged, shortest / (1 - SPARE)), fits, note, shape.known
    )


def training_pass(
    recipe: Recipe, stage: str, memory: float, compiled: bool
) -> TrainingPass | None:
    """The largest pass of a stage that fits into so many GiB; None where not even its longest row does."""
    part, row = _as_trained(recipe.training(stage)), _longest(recipe, stage)
    takes = _takes(recipe, stage, compiled)
    chosen = choose_size(
        part,
        row,
        lambda size, recompute: takes(size, recompute) <= memory * (1 - SPARE),
    )
    if chosen is None:
        return None
    size, recomputed = chosen
    return TrainingPass(
        size, size.at_most(row, part.share), recomputed, takes(size, recomputed)
    )


def _as_trained(part: Training) -> Training:
    """Under ZeRO-3 no pass is tried, so activations are recomputed unless the recipe forbids it."""
    recomputed = part.zero_stage == 3 and part.gradient_checkpointing == "auto"
    return (
        part.model_copy(update={"gradient_checkpointing": True}) if recomputed else part
    )


def worker_memory(recipe: Recipe, stage: str, gpu: Gpu) -> float:
    """GiB of a GPU that a worker of a stage has: all of it, or its share."""
    return gpu.memory * min(1.0, recipe.training(stage).gpus_per_worker)


def _longest(recipe: Recipe, stage: str) -> int:
    """Tokens of the longest row; a pair has two sides."""
    return recipe.training(stage).max_length * (2 if stage == "align" else 1)


def _takes(
    recipe: Recipe, stage: str, compiled: bool
) -> Callable[[PassSize, bool], float]:
    """The GiB that training takes as a function of a pass's size, and of whether activations are recomputed."""
    part, shape = recipe.training(stage), model_shape(recipe.base.model)
    wide = _BYTES[recipe.base.dtype] / 2  # what passes keep was measured in bfloat16
    kept = _kept(shape) * wide * (_KEPT_COMPILED if compiled else 1.0)
    recomputed = wide * (
        2 * shape.layers * shape.hidden + 2 * _kept(shape) / shape.layers
    )
    fixed, row = _fixed(recipe, stage, shape), _longest(recipe, stage)

    def takes(size: PassSize, recompute: bool) -> float:
        return (
            fixed + size.at_most(row, part.share) * (recomputed if recompute else kept)
        ) / GIB

    return takes


def _kept(shape: Shape) -> float:
    """Bytes that the forward pass of a token keeps for the backward pass, with adapters on all linear maps."""
    return _KEPT * shape.layers * sum(into + out for into, out in shape.linear.values())


def _fixed(recipe: Recipe, stage: str, shape: Shape) -> float:
    """Bytes of the model and of what is trained; of a preference stage with the reference's adapter."""
    # align continues hh-sft's adapter.
    lora = recipe.sft.lora if stage == "sft" else recipe.hh_sft.lora
    of_type = _BYTES[recipe.base.dtype]
    linear = _NF4 if recipe.training(stage).load_in_4bit else of_type
    widths = sum(
        sum(shape.linear[name]) for name in lora.targets if name in shape.linear
    )
    adapter = shape.layers * lora.r * widths
    reference = 4 * adapter if stage == "align" else 0
    weights = shape.linear_weights * linear + shape.embedding_weights * of_type
    part = recipe.training(stage)
    sharded = part.workers if part.zero_stage == 3 else 1
    return (weights + adapter * _TRAINED) / sharded + reference


def _weight_bytes(shape: Shape, model: str, part: ModelSection | Serve) -> float:
    """Bytes of a weight in an engine's linear maps."""
    told = f"{model.rpartition('/')[2]} {part.engine.get('quantization') or ''}".lower()
    bits = shape.bits or next(
        (bits for pattern, bits in _NAMED_BITS if re.search(pattern, told)), None
    )
    return _QUANTISED.get(bits or 0) or _BYTES.get(part.dtype, 2)
