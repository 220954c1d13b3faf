"""Adapters after training.

An adapter is merged into the weights, joined with those before it into one LoRA on the
untouched base, and recorded with its lineage.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Recipe
from bezoar_ray.store import Store, digest

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# vllm.config.lora.MaxLoRARanks, copied since importing vLLM takes 18 s.
_SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# File and tensor names of PEFT.
_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_DOWN = ".lora_A.weight"
_UP = ".lora_B.weight"

_BEYOND_PLAIN_LORA = (
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
)


class NotJoinable(BezoarError):
    """A chain of adapters that is not equal to any plain LoRA."""


def merge(model: "PeftModel") -> "PreTrainedModel":
    """Add the adapter of an unquantized model to its weights.

    The product is computed in float32 and rounded once. Merging into 4-bit weights
    would lose precision and leave 4-bit layers.
    """
    # safe_merge checks each sum for NaN before it replaces the weight.
    return model.merge_and_unload(safe_merge=True)


def save(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> None:
    """Write a model, its tokenizer and chat template in the Hugging Face layout."""
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def join(adapters: list[Path], folder: Path, base: str) -> int:
    """Write a chain of LoRAs as one LoRA on the untouched base.

    Each adapter of the chain was trained on the merge of those before it. Their updates
    add up, sum_i s_i B_i A_i, which is one product of the concatenated factors:
    [s_1 B_1, s_2 B_2] [A_1; A_2]. Zeros pad the rank to one that vLLM serves. The files
    are enough for it: no model is loaded.

    Returns:
        The rank.

    Raises:
        NotJoinable: an adapter is not a plain LoRA, or the ranks add up to more than
            vLLM serves.
    """
    from safetensors.torch import save_file

    chain = [_load_factors(adapter) for adapter in adapters]
    rank = served_rank(sum(_rank(factors) for factors in chain))
    layers = sorted({layer for factors in chain for layer in factors})
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        down, up = _concatenate(layer, chain, rank)
        tensors[f"{_PREFIX}{layer}{_DOWN}"] = down
        tensors[f"{_PREFIX}{layer}{_UP}"] = up
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    config = _read_config(adapters[-1]) | {
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,  # a scale of 1: the factors include theirs
        "lora_dropout": 0.0,
        "target_modules": sorted({layer.rsplit(".", 1)[-1] for layer in layers}),
        "inference_mode": True,
        "use_rslora": False,
    }
    (folder / _CONFIG).write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
    return rank


def served_rank(rank: int) -> int:
    """Return the smallest rank that vLLM serves and that is at least `rank`.

    Raises:
        NotJoinable: there is none.
    """
    for allowed in _SERVED_RANKS:
        if allowed >= rank:
            return allowed
    raise NotJoinable(
        f"the joined adapters have rank {rank}; vLLM serves {_SERVED_RANKS[-1]} at "
        "most. Lower lora.r"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    return orjson.loads((folder / _CONFIG).read_bytes())


def _load_factors(folder: Path) -> "dict[str, tuple[Tensor, Tensor]]":
    """Return A, and B times the adapter's scale, by layer; both in float32."""
    from safetensors.torch import load_file

    config = _read_config(folder)
    tensors = load_file(folder / _WEIGHTS)
    _check_plain(folder, config, tensors)
    rank = config["r"]
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    scale = config["lora_alpha"] / divisor
    factors = {}
    for name, down in tensors.items():
        if not name.endswith(_DOWN):
            continue
        layer = name.removeprefix(_PREFIX).removesuffix(_DOWN)
        up = tensors[name.removesuffix(_DOWN) + _UP]
        factors[layer] = (down.float(), up.float() * scale)
    return factors


def _check_plain(
    folder: Path, config: dict[str, Any], tensors: "dict[str, Tensor]"
) -> None:
    """Check that an adapter is a plain LoRA without bias.

    Raises:
        NotJoinable: it has something else.
    """
    extras = []
    if config["peft_type"] != "LORA":
        extras.append(config["peft_type"])
    extras += [key for key in _BEYOND_PLAIN_LORA if config.get(key)]
    extras += [name for name in tensors if not name.endswith((_DOWN, _UP))]
    if not extras and config.get("bias", "none") != "none":
        extras.append("bias")
    if extras:
        raise NotJoinable(
            f"{folder}: only a plain LoRA without bias can be joined "
            f"(found {' '.join(extras)})"
        )


def _rank(factors: "dict[str, tuple[Tensor, Tensor]]") -> int:
    down, _ = next(iter(factors.values()))
    return down.shape[0]


def _concatenate(
    layer: str, chain: "list[dict[str, tuple[Tensor, Tensor]]]", rank: int
) -> "tuple[Tensor, Tensor]":
    """Return a layer's A and B over all adapters that have it, padded to the rank."""
    import torch
    from torch.nn.functional import pad

    pairs = [factors[layer] for factors in chain if layer in factors]
    down = torch.cat([a for a, _ in pairs])
    up = torch.cat([b for _, b in pairs], dim=1)
    missing = rank - down.shape[0]
    # safetensors refuses tensors that are not contiguous.
    padded_down = pad(down, (0, 0, 0, missing)).contiguous()
    padded_up = pad(up, (0, missing)).contiguous()
    return padded_down, padded_up


def record(
    store: Store,
    recipe: Recipe,
    name: str,
    parent: str | None,
    fingerprint: str,
    **more: object,
) -> None:
    """Write a checkpoint's lineage.json.

    The parent is a relative path, so that the run directory can be moved.
    """
    base = {
        "model": recipe.base.model,
        "revision": recipe.base.revision,
        "license": recipe.base.license,
    }
    lineage = {
        "name": name,
        "parent": f"../{parent}" if parent else None,
        "base": base,
        "fingerprint": fingerprint,
        **more,
    }
    store.replace_json(layout.checkpoint(name).lineage, lineage)


def weights_fingerprint(store: Store, name: str) -> str:
    """Return the fingerprint of a checkpoint: a digest of its merged weights."""
    merged = store.path(layout.checkpoint(name).merged)
    return digest(*sorted(merged.glob("*.safetensors")))
