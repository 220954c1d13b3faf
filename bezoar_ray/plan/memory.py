"""What each stage takes of a GPU's memory, and the largest training pass that fits."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from bezoar_ray.gpus import ENGINE_SHARE, Gpu
from bezoar_ray.recipe import ModelPart, Recipe, Serve
from bezoar_ray.shapes import Shape, model_shape
from bezoar_ray.train.pass_size import SPARE, PassSize, choose_size

GIB = 2**30
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_QUANTISED = ((r"fp8|w8a8|int8|8bit", 1.0), (r"awq|gptq|int4|w4a16|fp4|4bit|bitsandbytes|gpt-oss", 0.56))
"""Bytes of a weight in the linear maps, with its scales, by what the model's name or `engine.quantization` says."""
_NF4 = 0.516  # bytes of a weight in NF4 with double quantisation
_TRAINED = 16  # bytes of a trained weight: itself, its gradient and Adam's two moments, in float32
_KEPT = 3.34  # bytes that a pass keeps of a token for each width of a layer's linear maps; compiled layers keep less
_KEPT_COMPILED = 0.85  # of that
_ENGINE = 2 * GIB  # what vLLM takes beside weights and cache: activations, CUDA graphs


@dataclass(frozen=True)
class Need:
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
        unsure = "" if self.known else " (its shape is not known: one of about its size)"
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


def engine_need(stage: str, model: str, part: ModelPart | Serve, gpu: Gpu) -> Need:
    """vLLM on a GPU: its share of the weights, and a cache that holds one sequence at least."""
    shape = model_shape(model)
    spread = math.prod(part.engine.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
    of_type = _BYTES.get(part.dtype, 2)
    weights = (shape.linear_weights * _weight_bytes(model, part) + shape.embedding_weights * of_type) / spread
    token = shape.kv_numbers * of_type / spread
    share = part.engine.get("gpu_memory_utilization", ENGINE_SHARE * min(1.0, part.num_gpus))
    cache = (share * gpu.memory * GIB - weights - _ENGINE) / token
    context = part.engine.get("max_model_len", shape.context) or 1
    fits = cache >= context
    if cache < 1:
        note = "and no room is left for a cache"
    elif fits:
        note = f"with room for a cache of {cache:,.0f} tokens"
    else:
        note = f"with room for a cache of {cache:,.0f} tokens where engine.max_model_len asks for {context:,}"
    note += f" on {spread} GPUs" if spread > 1 else ""
    return Need(stage, model, gpu, (weights + _ENGINE + context * token) / GIB, fits, note, shape.known)


def training_need(recipe: Recipe, stage: str, gpu: Gpu, compiled: bool) -> Need:
    """QLoRA on a GPU: what a pass of the longest row takes, and the largest pass that fits.

    Args:
        recipe: has the stage, whose workers ask for a GPU or a share of one.
        stage: `sft`, `hh-sft` or `dpo`.
        gpu: one of the stage's.
        compiled: whether the layers are compiled, which keep less.
    """
    model, part = recipe.base.model, recipe.training(stage)
    shape = model_shape(model)
    memory = worker_memory(recipe, stage, gpu)
    merged = shape.weights * _BYTES[recipe.base.dtype] / GIB  # at the end, unquantised
    row = _longest(recipe, stage)
    takes = _takes(recipe, stage, compiled)
    least = max(merged, takes(PassSize(tokens=row), part.gradient_checkpointing is not False))
    found = training_pass(recipe, stage, memory, compiled)
    if found is None:
        note, fits = f"no room for a row of {part.max_length:,} tokens", False
    else:
        how = "recomputed" if found.recomputed else "kept"
        note = f"passes of up to {found.tokens:,} tokens take {found.gib:.1f}, activations {how}"
        fits = merged <= memory
    return Need(stage, model, gpu, least, fits, note, shape.known)


def training_pass(recipe: Recipe, stage: str, memory: float, compiled: bool) -> TrainingPass | None:
    """The largest pass of a stage that fits into so many GiB; None where not even its longest row does."""
    part, row = recipe.training(stage), _longest(recipe, stage)
    takes = _takes(recipe, stage, compiled)
    chosen = choose_size(part, row, lambda size, recompute: takes(size, recompute) <= memory * (1 - SPARE))
    if chosen is None:
        return None
    size, recomputed = chosen
    return TrainingPass(size, size.at_most(row, part.share), recomputed, takes(size, recomputed))


def worker_memory(recipe: Recipe, stage: str, gpu: Gpu) -> float:
    """GiB of a GPU that a worker of a stage has: all of it, or its share."""
    return gpu.memory * min(1.0, recipe.training(stage).gpus_per_worker)


def _longest(recipe: Recipe, stage: str) -> int:
    """Tokens of the longest row; a pair has two sides."""
    return recipe.training(stage).max_length * (2 if stage == "dpo" else 1)


def _takes(recipe: Recipe, stage: str, compiled: bool) -> Callable[[PassSize, bool], float]:
    """The GiB that training takes as a function of a pass's size, and of whether activations are recomputed."""
    part, shape = recipe.training(stage), model_shape(recipe.base.model)
    kept = _kept(shape) * (_KEPT_COMPILED if compiled else 1.0)
    recomputed = 2 * shape.layers * shape.hidden + 2 * _kept(shape) / shape.layers
    fixed, row = _fixed(recipe, stage, shape), _longest(recipe, stage)

    def takes(size: PassSize, recompute: bool) -> float:
        return (fixed + size.at_most(row, part.share) * (recomputed if recompute else kept)) / GIB

    return takes


def _kept(shape: Shape) -> float:
    """Bytes that the forward pass of a token keeps for the backward pass, with adapters on all linear maps."""
    return _KEPT * shape.layers * sum(into + out for into, out in shape.linear.values())


def _fixed(recipe: Recipe, stage: str, shape: Shape) -> float:
    """Bytes of the model and of what is trained; of a preference stage with the reference's adapter."""
    lora = recipe.sft.lora if stage == "sft" else recipe.hh_sft.lora  # dpo goes on with hh-sft's
    of_type = _BYTES[recipe.base.dtype]
    linear = _NF4 if recipe.training(stage).load_in_4bit else of_type
    widths = sum(sum(shape.linear[name]) for name in lora.targets if name in shape.linear)
    adapter = shape.layers * lora.r * widths
    reference = 4 * adapter if stage == "dpo" else 0
    return shape.linear_weights * linear + shape.embedding_weights * of_type + adapter * _TRAINED + reference


def _weight_bytes(model: str, part: ModelPart | Serve) -> float:
    """Bytes of a weight in an engine's linear maps."""
    told = f"{model} {part.engine.get('quantization') or ''}".lower()
    quantised = next((size for pattern, size in _QUANTISED if re.search(pattern, told)), None)
    return quantised or _BYTES.get(part.dtype, 2)
