"""A run directory with a family of checkpoints that nobody had to train: the embedded base and random adapters."""

from pathlib import Path

import orjson

from bezoar_ray.recipe import Recipe, load_recipe
from bezoar_ray.store import Store
from bezoar_ray.tiny import World

RANKS = {"sft": 16, "dpo": 32}


def write_family(store: Store, world: World) -> None:
    """Write `checkpoints/{base,sft,dpo}` as training leaves them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.base)
    tokenizer.chat_template = family_recipe().template
    tokenizer.save_pretrained(store.path("checkpoints/base"))
    store.replace_json("checkpoints/base/lineage.json", {"name": "base", "fingerprint": "weights-of-base"})
    for name, rank in RANKS.items():
        torch.manual_seed(rank)
        base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
        _write_adapter(base, rank, store.path(f"checkpoints/{name}/joined"))
        store.replace_json(f"checkpoints/{name}/lineage.json", {"name": name, "fingerprint": f"weights-of-{name}"})


def write_merged(store: Store, world: World, name: str, family: Store) -> None:
    """Write the merged weights of a family's checkpoint."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, family.path(f"checkpoints/{name}/joined")).merge_and_unload()
    merged.save_pretrained(store.path(f"checkpoints/{name}/merged"))


def _write_adapter(base, rank: int, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)


def family_recipe(*overrides: str) -> Recipe:
    """The embedded recipe with few items and questions."""
    few = ["evaluate.harness.tasks.0.limit=12", "evaluate.harness.tasks.1.limit=12", "evaluate.mt_bench.limit=2"]
    return load_recipe("tiny", [*few, *overrides])


def log_probabilities(model, tokens: list[int]) -> list[float]:
    """Each token's log-probability after the ones before it, computed without vLLM."""
    import torch

    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), dim=-1)
    return [scores[i, token].item() for i, token in enumerate(tokens[1:])]


def read_lines(store: Store, name: str) -> list[dict]:
    """The rows of a .jsonl file."""
    return [orjson.loads(line) for line in store.read(name).splitlines()]
