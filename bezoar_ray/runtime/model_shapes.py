"""The shapes of models: their weights, and what a token takes of a cache."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bezoar_ray.runtime.caches import hub_cache


@dataclass(frozen=True)
class Shape:
    """A decoder with gated or plain feed-forward layers."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False
    """Whether input and output share one matrix of embeddings."""
    gated: bool = True
    """Whether its feed-forward layers have a gate beside the two projections."""
    context: int | None = None
    """Tokens of the longest sequence, where that is known."""
    bits: int | None = None
    """Of a weight in the linear maps, where they are quantised."""
    known: bool = True
    """Whether it is the model's own shape; otherwise it is a shape of about its size."""

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """The widths, in and out, of a layer's linear maps, by Llama's names."""
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = {
            "q_proj": (self.hidden, q),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (q, self.hidden),
        }
        gate = {"gate_proj": (self.hidden, self.inner)} if self.gated else {}
        return (
            attention
            | gate
            | {
                "up_proj": (self.hidden, self.inner),
                "down_proj": (self.inner, self.hidden),
            }
        )

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' linear maps: what QLoRA holds in 4 bits."""
        return self.layers * sum(into * out for into, out in self.linear.values())

    @property
    def embedding_weights(self) -> int:
        """Weights of the embeddings and of the head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """All of them, but for a few vectors."""
        return self.linear_weights + self.embedding_weights

    @property
    def kv_numbers(self) -> int:
        """Numbers that a token leaves in the cache of keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_size


_KNOWN = {
    "falcon-40b": Shape(
        60, 8192, 32768, 128, 8, 64, 65_024, tied=True, gated=False, context=2_048
    ),
    "open_llama_3b": Shape(26, 3200, 8640, 32, 32, 100, 32_000, context=2_048),
    "llama-3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128_256, context=8_192),
    "qwen3-14b": Shape(40, 5120, 17408, 40, 8, 128, 151_936, context=40_960),
    "qwen3-8b": Shape(36, 4096, 12288, 32, 8, 128, 151_936, context=40_960),
    "qwen3-4b-instruct-2507": Shape(
        36, 2560, 9728, 32, 8, 128, 151_936, tied=True, context=262_144
    ),
    "qwen3-4b-thinking-2507": Shape(
        36, 2560, 9728, 32, 8, 128, 151_936, tied=True, context=262_144
    ),
    "qwen3-4b": Shape(36, 2560, 9728, 32, 8, 128, 151_936, tied=True, context=40_960),
    "qwen3-1.7b": Shape(28, 2048, 6144, 16, 8, 128, 151_936, tied=True, context=40_960),
    "qwen3-0.6b": Shape(28, 1024, 3072, 16, 8, 128, 151_936, tied=True, context=40_960),
}
"""Models that the packaged recipes name and their sisters, from their configurations, by a part of their names."""

USUAL_BILLIONS = 7.0
"""Billions of weights that are assumed of a model whose name tells no size."""

_FIELDS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocabulary": ("vocab_size",),
}
"""What every shape needs, by the names that transformers' configurations have for it."""
_INNER = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose keys and values are cached; others (Mamba, linear attention) count otherwise."""
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


def shape_of(model: str, billions: float = USUAL_BILLIONS) -> Shape:
    """The shape of a model: from its configuration on this machine, from a table, or by its size.

    Args:
        model: a local folder, or a name on the hub.
        billions: weights of a model that is neither here nor in the table.
    """
    config = _config(model)
    if config is not None:
        return _from_config(config) or _about(billions)
    name = model.lower().rpartition("/")[2]
    return next(
        (known for key, known in _KNOWN.items() if key in name), None
    ) or _about(billions)


def _config(model: str) -> dict[str, Any] | None:
    """The model's config.json: of a local folder, or from the hub's cache; None where none can be read."""
    paths = [Path(model).expanduser() / "config.json"]
    if "/" in model:
        paths += sorted(
            hub_cache().glob(
                f"models--{model.replace('/', '--')}/snapshots/*/config.json"
            )
        )
    for path in paths:
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _from_config(config: dict[str, Any]) -> Shape | None:
    """None where the configuration leaves a size out, mixes experts, or has other layers than attention's."""
    if isinstance(config.get("text_config"), dict):
        config = config | config["text_config"]
    sizes = {
        name: size for name, names in _FIELDS.items() if (size := _first(config, names))
    }
    layer_types = config.get("layer_types") or config.get("layers_block_type") or ()
    if (
        len(sizes) < len(_FIELDS)
        or _has_experts(config)
        or set(layer_types) - _ATTENTION
    ):
        return None
    hidden, heads = sizes["hidden"], sizes["heads"]
    return Shape(
        layers=sizes["layers"],
        hidden=hidden,
        heads=heads,
        vocabulary=sizes["vocabulary"],
        inner=_first(config, _INNER) or 4 * hidden,
        kv_heads=_kv_heads(config, heads),
        head_size=_first(config, ("head_dim",)) or hidden // heads,
        tied=config.get(
            "tie_word_embeddings", True
        ),  # transformers leaves out what is its default
        gated=config.get("model_type") not in _PLAIN,
        context=_first(config, _CONTEXT),
        bits=_bits(config.get("quantization_config")),
    )


def _kv_heads(config: dict[str, object], heads: int) -> int:
    old_falcon = config.get("model_type") == "falcon" and not config.get(
        "new_decoder_architecture"
    )
    if (old_falcon or config.get("model_type") == "gpt_bigcode") and config.get(
        "multi_query", True
    ):
        return 1
    return _first(config, _KV_HEADS) or heads


def _has_experts(config: dict[str, object]) -> bool:
    """Whether feed-forward layers are mixtures; every family has a name of its own for their number."""
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    numbers = [
        value for part in parts for name, value in part.items() if "expert" in name
    ]
    return any(isinstance(number, int) and number > 1 for number in numbers)


def _bits(quantization: object) -> int | None:
    """Bits of a weight by a configuration's `quantization_config`: GPTQ, AWQ, bitsandbytes, FP8, compressed-tensors."""
    text = json.dumps(quantization or {}).lower()
    if told := re.search(r'"(?:bits|num_bits|w_bit)": (\d+)', text):
        return int(told.group(1))
    if "fp4" in text or '"load_in_4bit": true' in text:
        return 4
    return 8 if "fp8" in text or '"load_in_8bit": true' in text else None


def _first(config: dict[str, object], names: tuple[str, ...]) -> int | None:
    """The first of some fields in which a configuration has a number."""
    numbers = (config.get(name) for name in names)
    return next(
        (number for number in numbers if isinstance(number, int) and number > 0), None
    )


def _about(billions: float) -> Shape:
    """The known shape that is nearest in size, with as many layers as make the size right."""
    nearest = min(
        _KNOWN.values(), key=lambda shape: abs(shape.weights / 1e9 - billions)
    )
    a_layer = nearest.linear_weights / nearest.layers
    layers = max(1, round((billions * 1e9 - nearest.embedding_weights) / a_layer))
    return replace(nearest, layers=layers, context=None, known=False)


def model_shape(model: str) -> Shape:
    """The shape of a model, by the size that its name tells where it is not known."""
    return shape_of(model, billions_in(model) or USUAL_BILLIONS)


def billions_in(name: str) -> float | None:
    """Billions of weights that a name tells, as in `falcon-40b`, `smollm2-135m` or `mixtral-8x7b` (at most); None where
    it tells none."""
    found = re.search(
        r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z])", name.lower()
    )
    if not found:
        return None
    experts, number, unit = found.groups()
    return int(experts or 1) * float(number) / (1000 if unit == "m" else 1)
