"""What each stage takes of a GPU's memory, and the largest training pass that fits."""

from collections.abc import Iterator
from dataclasses import dataclass

from bezoar_ray.recipe import ModelPart, Recipe, Serve
from bezoar_ray.shapes import Shape, billions_in, shape_of
from bezoar_ray.train.pass_size import PassSize, choose_size

GIB = 2**30
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_BILLIONS = 7.0  # weights of a model whose name does not say
_NF4 = 0.516  # bytes of a weight in NF4 with double quantisation
_TRAINED = 16  # bytes of a trained weight: itself, its gradient and Adam's two moments, in float32
_KEPT = 3.34  # bytes that a pass keeps of a token for each width of a layer's linear maps; compiled layers keep less
_KEPT_COMPILED = 0.85  # of that
_SPARE = 0.05  # of a GPU that training leaves to fragments
_ENGINE = 2 * GIB  # what vLLM takes beside weights and cache: activations, CUDA graphs
_ENGINE_SHARE = 0.9  # of a GPU that vLLM takes by default


@dataclass(frozen=True)
class Need:
    """One stage's model on one GPU."""

    stage: str
    model: str
    gib: float
    """What it takes at least."""
    fits: bool
    note: str
    known: bool
    """Whether the model's own shape is known."""

    def __str__(self) -> str:
        unsure = "" if self.known else " (its shape is not known: one of about its size)"
        verdict = "fits" if self.fits else "DOES NOT FIT"
        return f"{self.model.rpartition('/')[2]}: {self.gib:.1f} GiB, {self.note}: {verdict}{unsure}"


@dataclass(frozen=True)
class TrainingPass:
    """The largest pass that fits, as train/fitting.py would choose it."""

    tokens: int
    recomputed: bool
    gib: float
    """With the model and the optimiser."""


def needs(recipe: Recipe, memory: float) -> Iterator[Need]:
    """Of every stage that uses a GPU, on GPUs of so many GiB."""
    talked_to = [("generate", teacher) for teacher in recipe.teachers]
    talked_to += [("filter", judge) for judge in (recipe.judges if recipe.filter.judge else ())]
    for stage, part in talked_to:
        if part.num_gpus and not part.base_url:
            yield _engine(stage, part.model, model_shape(part.model), part, memory)
    for stage in ("sft", "hh-sft", "dpo"):
        skipped = stage == "dpo" and recipe.align.method == "none"
        if recipe.training(stage).gpus_per_worker and not skipped:
            yield _trained(recipe, stage, memory)
    if recipe.serve.num_gpus and (recipe.evaluate.harness or recipe.evaluate.mt_bench):
        yield _engine("evaluate", recipe.base.model, model_shape(recipe.base.model), recipe.serve, memory)


def training_pass(recipe: Recipe, stage: str, memory: float, compiled: bool) -> TrainingPass | None:
    """The largest pass of a stage that fits into so many GiB; None where not even its longest row does."""
    part, shape = recipe.training(stage), model_shape(recipe.base.model)
    row = part.max_length * (2 if stage == "dpo" else 1)  # both sides of a pair
    kept = _kept(shape) * (_KEPT_COMPILED if compiled else 1.0)
    recomputed = 2 * shape.layers * shape.hidden + 2 * _kept(shape) / shape.layers
    fixed = _fixed(recipe, stage, shape)

    def takes(size: PassSize, recompute: bool) -> float:
        return (fixed + size.at_most(row, part.share) * (recomputed if recompute else kept)) / GIB

    found = choose_size(part, row, lambda size, recompute: takes(size, recompute) <= memory * (1 - _SPARE))
    if found is None:
        return None
    size, recompute = found
    return TrainingPass(size.at_most(row, part.share), recompute, takes(size, recompute))


def model_shape(model: str) -> Shape:
    """The shape of a model by its name; of one that says no size, as if it had 7 billion weights."""
    return shape_of(model, billions_in(model) or _BILLIONS)


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


def _trained(recipe: Recipe, stage: str, memory: float) -> Need:
    model, part = recipe.base.model, recipe.training(stage)
    shape = model_shape(model)
    merged = shape.weights * _BYTES[recipe.base.dtype] / GIB  # at the end, unquantised
    found = training_pass(recipe, stage, memory, compiled=False)
    if found is None:
        return Need(stage, model, merged, False, f"no row of {part.max_length:,} tokens fits", shape.known)
    how = "activations recomputed" if found.recomputed else "activations kept"
    taken = max(found.gib, merged)
    note = f"passes of up to {found.tokens:,} tokens, {how}"
    return Need(stage, model, taken, taken <= memory, note, shape.known)


def _engine(stage: str, model: str, shape: Shape, part: ModelPart | Serve, memory: float) -> Need:
    """vLLM on a GPU: its share of the weights, and a cache for one sequence at least."""
    spread = max(1, part.engine.get("tensor_parallel_size", 1) * part.engine.get("pipeline_parallel_size", 1))
    of_type = _BYTES.get(part.dtype, 2)
    weights = shape.weights * of_type / spread
    share = part.engine.get("gpu_memory_utilization", _ENGINE_SHARE * min(1.0, part.num_gpus or 1.0))
    token = shape.kv_numbers * of_type / spread
    context = part.engine.get("max_model_len", 0)
    cache = (share * memory * GIB - weights - _ENGINE) / token
    least = (weights + _ENGINE + context * token) / GIB
    note = f"a cache of {max(0, cache):,.0f} tokens" + (f" on {spread} GPUs" if spread > 1 else "")
    return Need(stage, model, least, cache >= max(context, 1), note, shape.known)
