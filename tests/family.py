"""A family of checkpoints that nobody had to train, and what it says without vLLM."""

import orjson

from bezoar_ray.recipe import Recipe, load_recipe
from bezoar_ray.runtime.embedded_world import World
from bezoar_ray.store import Store
from jobs.benchmarks.family import write_family as write_checkpoints

RANKS = {"sft": 16, "dpo": 32}


def write_family(store: Store, world: World) -> None:
    """Write `checkpoints/{base,sft,dpo}`."""
    write_checkpoints(store, world, RANKS)


def write_merged(store: Store, world: World, name: str, family: Store) -> None:
    """Write the merged weights of a family's checkpoint."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(
        base, family.path(f"checkpoints/{name}/joined")
    ).merge_and_unload()
    merged.save_pretrained(store.path(f"checkpoints/{name}/merged"))


def family_recipe(*overrides: str) -> Recipe:
    """The embedded recipe with few items and questions."""
    few = [
        "evaluate.harness.tasks.0.limit=12",
        "evaluate.harness.tasks.1.limit=12",
        "evaluate.harness.tasks.2.limit=12",
        "evaluate.mt_bench.limit=2",
    ]
    return load_recipe("tiny", [*few, *overrides])


def log_probabilities(model, tokens: list[int]) -> list[float]:
    """Each token's log-probability after the ones before it, computed without vLLM."""
    import torch

    with torch.no_grad():
        scores = torch.log_softmax(
            model(torch.tensor([tokens])).logits[0].float(), dim=-1
        )
    return [scores[i, token].item() for i, token in enumerate(tokens[1:])]


def read_lines(store: Store, name: str) -> list[dict]:
    """The rows of a .jsonl file."""
    return [orjson.loads(line) for line in store.read(name).splitlines()]
