"""What vLLM's own server is told: the model, its tokenizer and template, and the joined LoRAs on the base."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.engine import is_cpu_build, on_this_machine, trusted
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Recipe, Serve
from bezoar_ray.stages import BASE, checkpoint_names
from bezoar_ray.store import Store

_GROUPED_LORA = "bezoar_ray.serve.cpu_lora.GroupedLora"
_BASE = layout.checkpoint(BASE).folder


def modes(recipe: Recipe, store: Store) -> dict[str, str]:
    """The checkpoints that the run directory holds, in the order of training, and how each is served.

    base is always there, as it is. What could not be joined is `merged` whatever the recipe's mode.
    """
    found = {BASE: "base"}
    for name in checkpoint_names()[1:]:
        if recipe.serve.mode == "joined" and store.exists(
            layout.checkpoint(name).joined
        ):
            found[name] = "joined"
        elif store.exists(layout.checkpoint(name).merged):
            found[name] = "merged"
    return found


def hosted(served: dict[str, str]) -> dict[str, str]:
    """The engine that hosts each checkpoint: base's, or its own where it is served merged."""
    return {name: name if mode == "merged" else BASE for name, mode in served.items()}


def engine_arguments(recipe: Recipe, store: Store) -> dict[str, list[str]]:
    """The command lines of vLLM's server: of base with all joined checkpoints, and of each merged one, by their names.

    Raises:
        BezoarError: there is no base checkpoint.
    """
    template = store.path(f"{_BASE}/chat_template.jinja")
    if not template.is_file():
        raise BezoarError(
            f"{template}: missing. Run the sft stage first: it writes base's tokenizer and template."
        )
    model, served = recipe.base, modes(recipe, store)
    shared = ["--tokenizer", str(store.path(_BASE)), "--dtype", recipe.serve.dtype]
    shared += [
        "--chat-template",
        str(template),
        "--chat-template-content-format",
        "string",
    ]
    shared += [
        "--generation-config",
        "vllm",
    ]  # else the base's own sampling defaults enter every answer
    shared += ["--trust-remote-code"] if model.trust_remote_code else []
    shared += _flags(trusted(model) | _engine(recipe.serve))
    base = ["--model", model_path(model.model), "--served-model-name", BASE]
    base += ["--revision", model.revision] if model.revision else []
    base += _lora_flags(
        {
            name: store.path(layout.checkpoint(name).joined)
            for name, mode in served.items()
            if mode == "joined"
        }
    )
    whole = {
        name: store.path(layout.checkpoint(name).merged)
        for name, mode in served.items()
        if mode == "merged"
    }
    return {BASE: [*base, *shared]} | {
        name: ["--model", str(path), "--served-model-name", name, *shared]
        for name, path in whole.items()
    }


def _engine(part: Serve) -> dict[str, Any]:
    grouped = {"worker_extension_cls": _GROUPED_LORA} if is_cpu_build() else {}
    return on_this_machine(grouped | part.engine, part.num_gpus)


def _lora_flags(paths: dict[str, Path]) -> list[str]:
    if not paths:
        return []
    configs = [
        json.loads((path / "adapter_config.json").read_text())
        for path in paths.values()
    ]
    rank = max(
        config["r"] for config in configs
    )  # one that vLLM allows: training has filled it up
    limits = ["--max-lora-rank", str(rank), "--max-loras", str(len(paths))]
    modules = [
        json.dumps({"name": name, "path": str(path)}) for name, path in paths.items()
    ]  # a path may have a "="
    return ["--enable-lora", *limits, *_targets(configs), "--lora-modules", *modules]


def _targets(configs: Iterable[dict[str, Any]]) -> list[str]:
    """Only the layers with adapters: with LoRA on lm_head, vLLM on CPU fails to echo log-probabilities of a batch."""
    targets = [config["target_modules"] for config in configs]
    if any(
        isinstance(names, str) for names in targets
    ):  # a pattern of peft's, which vLLM does not take
        return []
    return [
        "--lora-target-modules",
        *sorted({name for names in targets for name in names}),
    ]


def _flags(engine: dict[str, Any]) -> list[str]:
    flags = []
    for key, value in engine.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [
                f"--{name}",
                json.dumps(value) if isinstance(value, dict | list) else str(value),
            ]
    return flags
