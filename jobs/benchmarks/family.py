"""A run directory with checkpoints that nobody had to train: the embedded base and random adapters."""

from pathlib import Path
from typing import Any

from bezoar_ray.recipe import load_recipe
from bezoar_ray.runtime.embedded_world import World
from bezoar_ray.store import Store

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_family(
    store: Store, world: World, ranks: dict[str, int], std: float = 0.3
) -> None:
    """Write `checkpoints/base` and one checkpoint for each name, as training leaves them: rank by name.

    `std` is that of the adapters' second matrices: how far they are from base.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.base)
    tokenizer.chat_template = load_recipe("tiny").template
    tokenizer.save_pretrained(store.path("checkpoints/base"))
    for name, rank in ranks.items():
        torch.manual_seed(rank)
        base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
        _write_adapter(base, rank, std, store.path(f"checkpoints/{name}/joined"))
    for name in ("base", *ranks):
        store.replace_json(
            f"checkpoints/{name}/lineage.json",
            {"name": name, "fingerprint": f"weights-of-{name}"},
        )


def _write_adapter(base: Any, rank: int, std: float, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        base,
        LoraConfig(
            r=rank, lora_alpha=rank, target_modules=TARGETS, task_type="CAUSAL_LM"
        ),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=std)
    model.save_pretrained(folder)
