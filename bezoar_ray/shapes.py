"""The shapes of models: how many weights they have, and what a token of theirs takes."""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


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
    known: bool = True
    """Whether it is the model's own; else one of about its size."""

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """The widths, in and out, of a layer's linear maps, by Llama's names."""
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = {
            "q_proj": (self.hidden, q), "k_proj": (self.hidden, kv), "v_proj": (self.hidden, kv),
            "o_proj": (q, self.hidden),
        }  # fmt: skip
        gate = {"gate_proj": (self.hidden, self.inner)} if self.gated else {}
        return attention | gate | {"up_proj": (self.hidden, self.inner), "down_proj": (self.inner, self.hidden)}

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
    "falcon-40b": Shape(60, 8192, 32768, 128, 8, 64, 65_024, tied=True, gated=False),
    "open_llama_3b": Shape(26, 3200, 8640, 32, 32, 100, 32_000),
    "llama-3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128_256),
    "qwen3-14b": Shape(40, 5120, 17408, 40, 8, 128, 151_936),
    "qwen3-8b": Shape(36, 4096, 12288, 32, 8, 128, 151_936),
    "qwen3-4b": Shape(36, 2560, 9728, 32, 8, 128, 151_936, tied=True),
    "qwen3-1.7b": Shape(28, 2048, 6144, 16, 8, 128, 151_936, tied=True),
    "qwen3-0.6b": Shape(28, 1024, 3072, 16, 8, 128, 151_936, tied=True),
}
"""Of the models that the packaged recipes name, from their configurations; a name begins or goes on with its key."""


def shape_of(model: str, billions: float) -> Shape:
    """The shape of a model: from its own configuration where that is on this machine, from a table, or by its size."""
    if config := _config(model):
        return _from_config(config)
    name = model.lower().rpartition("/")[2]
    if known := next((shape for key, shape in _KNOWN.items() if key in name), None):
        return known
    return _about(billions)


def _config(model: str) -> dict[str, Any] | None:
    """The model's config.json: of a local folder, or from the hub's cache."""
    paths = [Path(model).expanduser() / "config.json"]
    if "/" in model:
        home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
        cache = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
        paths += sorted(cache.glob(f"models--{model.replace('/', '--')}/snapshots/*/config.json"))
    found = next((path for path in paths if path.is_file()), None)
    return json.loads(found.read_text()) if found else None


def _from_config(config: dict[str, Any]) -> Shape:
    config = config | config.get("text_config", {})
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    inner = config.get("intermediate_size") or config.get("ffn_hidden_size") or 4 * hidden
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or config.get("num_kv_heads") or heads,
        head_size=config.get("head_dim") or hidden // heads,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        gated=config.get("model_type") not in ("falcon", "opt", "bloom", "mpt", "gpt_neox"),
    )


def _about(billions: float) -> Shape:
    """The known shape that is nearest in size, with as many layers as make the size right."""
    shapes = sorted(_KNOWN.values(), key=lambda shape: abs(shape.weights / 1e9 - billions))
    nearest = shapes[0]
    a_layer = nearest.linear_weights / nearest.layers
    layers = max(1, round((billions * 1e9 - nearest.embedding_weights) / a_layer))
    return replace(nearest, layers=layers, known=False)


def billions_in(name: str) -> float | None:
    """Billions of weights that a name tells, as in `falcon-40b`; None where it tells none."""
    found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z])", name.lower())
    return float(found.group(1)) if found else None
