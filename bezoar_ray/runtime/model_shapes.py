"""The shapes of models: how many weights they have, and what a token takes of a cache."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bezoar_ray.runtime.caches import hub_cache


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder with gated or plain feed-forward layers."""

    layers: int
    hidden: int
    inner: int
    """Width of a feed-forward layer."""
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False
    """Whether input and output share one embedding matrix."""
    gated: bool = True
    """Whether its feed-forward layers have a gate beside the two projections."""
    context: int | None = None
    """Tokens of the longest sequence; None where it is not known."""
    bits: int | None = None
    """Bits of a weight in the linear layers; None where they are not quantized."""
    known: bool = True
    """Whether it is the model's own shape, and not that of a model of about its size."""

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Input and output width of the linear maps of one layer, by Llama's names."""
        query = self.heads * self.head_size
        key_value = self.kv_heads * self.head_size
        maps = {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key_value),
            "v_proj": (self.hidden, key_value),
            "o_proj": (query, self.hidden),
        }
        if self.gated:
            maps["gate_proj"] = (self.hidden, self.inner)
        maps["up_proj"] = (self.hidden, self.inner)
        maps["down_proj"] = (self.inner, self.hidden)
        return maps

    @property
    def linear_weights(self) -> int:
        """Weights of the linear maps of all layers, which QLoRA keeps in 4 bits."""
        per_layer = sum(
            width_in * width_out for width_in, width_out in self.linear.values()
        )
        return self.layers * per_layer

    @property
    def embedding_weights(self) -> int:
        """Weights of the embeddings and of the output head."""
        matrices = 1 if self.tied else 2
        return matrices * self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights, but for a few vectors."""
        return self.linear_weights + self.embedding_weights

    @property
    def kv_numbers(self) -> int:
        """Numbers that a token takes in the KV cache."""
        return 2 * self.layers * self.kv_heads * self.head_size


_KNOWN = {
    "falcon-40b": Shape(
        layers=60,
        hidden=8192,
        inner=32768,
        heads=128,
        kv_heads=8,
        head_size=64,
        vocabulary=65_024,
        tied=True,
        gated=False,
        context=2_048,
    ),
    "open_llama_3b": Shape(
        layers=26,
        hidden=3200,
        inner=8640,
        heads=32,
        kv_heads=32,
        head_size=100,
        vocabulary=32_000,
        context=2_048,
    ),
    "llama-3-8b": Shape(
        layers=32,
        hidden=4096,
        inner=14336,
        heads=32,
        kv_heads=8,
        head_size=128,
        vocabulary=128_256,
        context=8_192,
    ),
    "qwen3-14b": Shape(
        layers=40,
        hidden=5120,
        inner=17408,
        heads=40,
        kv_heads=8,
        head_size=128,
        vocabulary=151_936,
        context=40_960,
    ),
    "qwen3-8b": Shape(
        layers=36,
        hidden=4096,
        inner=12288,
        heads=32,
        kv_heads=8,
        head_size=128,
        vocabulary=151_936,
        context=40_960,
    ),
    "qwen3-4b-instruct-2507": Shape(
        layers=36,
        hidden=2560,
        inner=9728,
        heads=32,
        kv_heads=8,
        head_size=128,
        vocabulary=151_936,
        tied=True,
        context=262_144,
    ),
    "qwen3-4b-thinking-2507": Shape(
        layers=36,
        hidden=2560,
        inner=9728,
        heads=32,
        kv_heads=8,
        head_size=128,
        vocabulary=151_936,
        tied=True,
        context=262_144,
    ),
    "qwen3-4b": Shape(
        layers=36,
        hidden=2560,
        inner=9728,
        heads=32,
        kv_heads=8,
        head_size=128,
        vocabulary=151_936,
        tied=True,
        context=40_960,
    ),
    "qwen3-1.7b": Shape(
        layers=28,
        hidden=2048,
        inner=6144,
        heads=16,
        kv_heads=8,
        head_size=128,
        vocabulary=151_936,
        tied=True,
        context=40_960,
    ),
    "qwen3-0.6b": Shape(
        layers=28,
        hidden=1024,
        inner=3072,
        heads=16,
        kv_heads=8,
        head_size=128,
        vocabulary=151_936,
        tied=True,
        context=40_960,
    ),
}
"""Models that the packaged recipes name, and their sisters, by a part of their names.

The figures are from their configurations. The first part that fits a name counts.
"""

USUAL_BILLIONS = 7.0
"""Billions of weights that are assumed for a model whose name has no size."""

_FIELDS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocabulary": ("vocab_size",),
}
"""The sizes that every shape needs, with their names in transformers' configurations."""
_INNER = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose KV cache grows by `kv_numbers` with each token.

Others (Mamba, linear attention) count otherwise.
"""
_PLAIN = (
    "falcon",
    "opt",
    "bloom",
    "mpt",
    "gpt2",
    "gpt_neox",
    "gpt_bigcode",
    "phi",
    "starcoder2",
)
"""Types of models whose feed-forward layers have no gate."""
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z])")
"""A size in a model's name: number of experts, number and unit."""


def shape_of(model: str, billions: float = USUAL_BILLIONS) -> Shape:
    """Return the shape of a model.

    It is from the model's configuration on this machine, else from a table, else it is
    that of a model of about the size.

    Args:
        model: A local folder, or a name on the hub.
        billions: Billions of weights of a model that is neither here nor in the table.
    """
    config = _config(model)
    if config is not None:
        return _from_config(config) or _about(billions)
    name = model.lower().rpartition("/")[2]
    for part, shape in _KNOWN.items():
        if part in name:
            return shape
    return _about(billions)


def _config(model: str) -> dict[str, Any] | None:
    """Return the model's config.json, from a local folder or from the hub's cache.

    Returns:
        None where none can be read.
    """
    paths = [Path(model).expanduser() / "config.json"]
    if "/" in model:
        cached = hub_cache() / f"models--{model.replace('/', '--')}"
        paths += sorted(cached.glob("snapshots/*/config.json"))
    for path in paths:
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return config
    return None


def _from_config(config: dict[str, Any]) -> Shape | None:
    """Return the shape that a configuration describes.

    Returns:
        None where it leaves a size out, mixes experts, or has layers without attention.
    """
    if isinstance(config.get("text_config"), dict):  # of a multimodal model
        config = config | config["text_config"]
    sizes = {}
    for name, names in _FIELDS.items():
        size = _first_number(config, names)
        if size is None:
            return None
        sizes[name] = size
    layer_types = config.get("layer_types") or config.get("layers_block_type") or ()
    if _has_experts(config) or set(layer_types) - _ATTENTION:
        return None
    hidden = sizes["hidden"]
    heads = sizes["heads"]
    return Shape(
        layers=sizes["layers"],
        hidden=hidden,
        heads=heads,
        vocabulary=sizes["vocabulary"],
        inner=_first_number(config, _INNER) or 4 * hidden,
        kv_heads=_kv_heads(config, heads),
        head_size=_first_number(config, ("head_dim",)) or hidden // heads,
        # transformers leaves out fields that have their defaults.
        tied=config.get("tie_word_embeddings", True),
        gated=config.get("model_type") not in _PLAIN,
        context=_first_number(config, _CONTEXT),
        bits=_bits(config.get("quantization_config")),
    )


def _kv_heads(config: dict[str, object], heads: int) -> int:
    """Return the number of KV heads; as many as heads where the configuration has none."""
    model_type = config.get("model_type")
    is_old_falcon = model_type == "falcon" and not config.get(
        "new_decoder_architecture"
    )
    may_share_one = is_old_falcon or model_type == "gpt_bigcode"
    if may_share_one and config.get("multi_query", True):
        return 1
    return _first_number(config, _KV_HEADS) or heads


def _has_experts(config: dict[str, object]) -> bool:
    """Tell whether feed-forward layers are mixtures of experts.

    Every family of models has a name of its own for the number of experts.
    """
    nested = [value for value in config.values() if isinstance(value, dict)]
    for section in (config, *nested):
        for name, value in section.items():
            if "expert" in name and isinstance(value, int) and value > 1:
                return True
    return False


def _bits(quantization: object) -> int | None:
    """Return the bits of a weight by a configuration's `quantization_config`.

    It may be of GPTQ, AWQ, bitsandbytes, FP8 or compressed-tensors.
    """
    # Each format nests its fields in its own way, so the text is searched.
    text = json.dumps(quantization or {}).lower()
    number = re.search(r'"(?:bits|num_bits|w_bit)": (\d+)', text)
    if number:
        return int(number[1])
    if "fp4" in text or '"load_in_4bit": true' in text:
        return 4
    if "fp8" in text or '"load_in_8bit": true' in text:
        return 8
    return None


def _first_number(config: dict[str, object], names: tuple[str, ...]) -> int | None:
    """Return the first of these fields that is a positive number; None without one."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _about(billions: float) -> Shape:
    """Return a shape of this size.

    It is the known shape that is nearest in size, with a number of layers that makes its
    size right.
    """

    def distance(shape: Shape) -> float:
        return abs(shape.weights / 1e9 - billions)

    nearest = min(_KNOWN.values(), key=distance)
    layer_weights = nearest.linear_weights / nearest.layers
    linear_weights = billions * 1e9 - nearest.embedding_weights
    layers = max(1, round(linear_weights / layer_weights))
    return replace(nearest, layers=layers, context=None, known=False)


def model_shape(model: str) -> Shape:
    """Return the shape of a model; an unknown one has the size that its name says."""
    return shape_of(model, billions_in(model) or USUAL_BILLIONS)


def billions_in(name: str) -> float | None:
    """Return the billions of weights in a model's name; None without a size in it.

    Args:
        name: As in `falcon-40b` or `smollm2-135m`. For `mixtral-8x7b` the result is an
            upper bound: experts share some weights.
    """
    size = re.search(_SIZE, name.lower())
    if not size:
        return None
    experts, number, unit = size.groups()
    weights = int(experts or 1) * float(number)
    return weights / 1000 if unit == "m" else weights
