"""Adapters after training: merged into the weights, joined into one LoRA on the untouched base, with their lineage."""

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

_RANKS = (
    1,
    8,
    16,
    32,
    64,
    128,
    256,
    320,
    512,
)  # vllm.config.lora.MaxLoRARanks; importing vLLM takes 18 s
_WEIGHTS, _CONFIG, _PREFIX = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "base_model.model.",
)
_FACTORS = (".lora_A.weight", ".lora_B.weight")
_NOT_PLAIN = (
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
)


class NotJoinable(BezoarError):
    """A chain of adapters has no equal in one plain LoRA."""


def merge(model: "PeftModel") -> "PreTrainedModel":
    """An unquantised model with its adapter added to its weights: the product in float32, one rounding at the end.

    Merging into 4-bit weights would lose precision and leave 4-bit layers.
    """
    return model.merge_and_unload(safe_merge=True)


def save(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> None:
    """Write a model with its tokenizer and chat template, as Hugging Face lays them out."""
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def join(adapters: list[Path], folder: Path, base: str) -> int:
    """Write a chain of LoRAs, each trained on the merge of those before it, as one LoRA on the untouched base.

    The updates of a chain add up, sum_i s_i B_i A_i, which is one product of the factors side by side:
    [s_1 B_1, s_2 B_2] [A_1; A_2]. Zeros fill up to a rank that vLLM serves. A layer that one adapter lacks has zeros in
    its place. It works on the files alone: no model is loaded.

    Returns:
        The rank.

    Raises:
        NotJoinable: an adapter is no plain LoRA, or the ranks add up to more than vLLM serves.
    """
    from safetensors.torch import save_file

    parts = [_factors(adapter) for adapter in adapters]
    rank = served_rank(sum(_rank(part) for part in parts))
    layers = sorted({layer for part in parts for layer in part})
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        down, up = _side_by_side(layer, parts, rank)
        tensors |= {
            f"{_PREFIX}{layer}.lora_A.weight": down,
            f"{_PREFIX}{layer}.lora_B.weight": up,
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    config = _config(adapters[-1]) | {
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({layer.rsplit(".", 1)[-1] for layer in layers}),
        "inference_mode": True,
        "use_rslora": False,
    }
    (folder / _CONFIG).write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
    return rank


def served_rank(rank: int) -> int:
    """The smallest rank that vLLM serves and that holds this one."""
    fitting = [allowed for allowed in _RANKS if allowed >= rank]
    if not fitting:
        raise NotJoinable(
            f"the joined adapters have rank {rank}; vLLM serves {_RANKS[-1]} at most: lower lora.r"
        )
    return fitting[0]


def _config(folder: Path) -> dict[str, Any]:
    return orjson.loads((folder / _CONFIG).read_bytes())


def _factors(folder: Path) -> "dict[str, tuple[Tensor, Tensor]]":
    """By layer: A, and B times the adapter's scale, both float32."""
    from safetensors.torch import load_file

    config, tensors = _config(folder), load_file(folder / _WEIGHTS)
    found = [config["peft_type"]] * (config["peft_type"] != "LORA") + [
        key for key in _NOT_PLAIN if config.get(key)
    ]
    found += [name for name in tensors if not name.endswith(_FACTORS)]
    if found or config.get("bias", "none") != "none":
        raise NotJoinable(
            f"{folder}: only a plain LoRA without bias can be joined (found {' '.join(found) or 'bias'})"
        )
    scale = config["lora_alpha"] / (
        math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    )
    factors = {}
    for name in (name for name in tensors if name.endswith(_FACTORS[0])):
        up = tensors[name.replace(".lora_A.", ".lora_B.")].float() * scale
        factors[name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")] = (
            tensors[name].float(),
            up,
        )
    return factors


def _rank(part: "dict[str, tuple[Tensor, Tensor]]") -> int:
    return next(iter(part.values()))[0].shape[0]


def _side_by_side(
    layer: str, parts: "list[dict[str, tuple[Tensor, Tensor]]]", rank: int
) -> "tuple[Tensor, Tensor]":
    import torch

    found = [part[layer] for part in parts if layer in part]
    down, up = torch.cat([a for a, _ in found]), torch.cat([b for _, b in found], dim=1)
    missing = rank - down.shape[0]
    pad = torch.nn.functional.pad
    return pad(down, (0, 0, 0, missing)).contiguous(), pad(
        up, (0, missing)
    ).contiguous()


def record(
    store: Store,
    recipe: Recipe,
    name: str,
    parent: str | None,
    fingerprint: str,
    **more: object,
) -> None:
    """Write a checkpoint's lineage.json: its parent by relative path, so that the run directory can be moved."""
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
    }
    store.replace_json(layout.checkpoint(name).lineage, lineage | more)


def weights_mark(store: Store, name: str) -> str:
    """The fingerprint of a checkpoint: a digest of its merged weights."""
    return digest(
        *sorted(store.path(layout.checkpoint(name).merged).glob("*.safetensors"))
    )
