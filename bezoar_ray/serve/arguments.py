"""Command lines for vLLM's server: model, tokenizer, template, and the LoRAs on the base."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.engine import (
    GROUPED_LORA,
    complete_engine_arguments,
    is_cpu_build,
    load_format_arguments,
)
from bezoar_ray.llm.model_identity import model_path
from bezoar_ray.recipe import Recipe, Serve
from bezoar_ray.stages import BASE, REWARD_MODEL, checkpoint_names
from bezoar_ray.store import Store

_BASE_FOLDER = layout.checkpoint(BASE).folder


def modes(recipe: Recipe, store: Store) -> dict[str, str]:
    """Return how each checkpoint is served, in the order of training.

    `base` is always there, and is served as it is. A checkpoint whose adapters could
    not be combined is `merged`, whatever the recipe's mode is.
    """
    mode_of = {BASE: "base"}
    for name in checkpoint_names():
        folders = layout.checkpoint(name)
        if name == BASE:
            continue
        if recipe.serve.mode == "joined" and store.exists(folders.joined):
            mode_of[name] = "joined"
        elif store.exists(folders.merged):
            mode_of[name] = "merged"
    return mode_of


def modes_with_reward_model(recipe: Recipe, store: Store) -> dict[str, str]:
    """Return how each checkpoint is served by `bezoar serve`, as `modes` does.

    The reward model is always `merged`, since its engine runs no other model.
    """
    mode_of = modes(recipe, store)
    is_there = store.exists(layout.checkpoint(REWARD_MODEL).merged)
    if is_there and recipe.serve.reward_model:
        mode_of[REWARD_MODEL] = "merged"
    return mode_of


def engine_of_each(mode_of: dict[str, str]) -> dict[str, str]:
    """Return the engine that serves each checkpoint.

    A merged checkpoint has an engine of its own; base's engine serves all others.
    """
    engines = {}
    for name, mode in mode_of.items():
        engines[name] = name if mode == "merged" else BASE
    return engines


def engine_arguments(recipe: Recipe, store: Store) -> dict[str, list[str]]:
    """Return the arguments of vLLM's server for each engine, by its name.

    The first engine is base's, which serves the joined checkpoints, too. Each merged
    checkpoint follows with its own.

    Raises:
        BezoarError: there is no base checkpoint.
    """
    template = store.path(f"{_BASE_FOLDER}/chat_template.jinja")
    if not template.is_file():
        raise BezoarError(
            f"{template}: missing. Run the sft stage first: it writes base's tokenizer and template."
        )
    joined = {}
    merged = {}
    for name, mode in modes_with_reward_model(recipe, store).items():
        folders = layout.checkpoint(name)
        if mode == "joined":
            joined[name] = store.path(folders.joined)
        elif mode == "merged":
            merged[name] = store.path(folders.merged)
    shared = _shared_arguments(recipe, store, template)

    model = recipe.base
    base = ["--model", model_path(model.model), "--served-model-name", BASE]
    if model.revision:
        base += ["--revision", model.revision]
    base += _lora_arguments(joined)
    engines = {BASE: [*base, *shared]}
    for name, path in merged.items():
        own = ["--model", str(path), "--served-model-name", name]
        if name == REWARD_MODEL:
            # It scores answers, at vLLM's route /pooling.
            own += ["--runner", "pooling"]
        engines[name] = [*own, *shared]
    return engines


def _shared_arguments(recipe: Recipe, store: Store, template: Path) -> list[str]:
    """Return the arguments that all engines have."""
    arguments = [
        # The tokenizer that training used: the repository's may give other ids.
        "--tokenizer",
        str(store.path(_BASE_FOLDER)),
        "--dtype",
        recipe.serve.dtype,
        "--chat-template",
        str(template),
        # Otherwise vLLM guesses from the template whether contents are texts or lists.
        "--chat-template-content-format",
        "string",
        # Otherwise the base's own sampling defaults apply to every answer.
        "--generation-config",
        "vllm",
    ]
    if recipe.base.trust_remote_code:
        arguments.append("--trust-remote-code")
    settings = load_format_arguments(recipe.base) | _engine_settings(recipe.serve)
    return arguments + _flags(settings)


def _engine_settings(section: Serve) -> dict[str, Any]:
    defaults = {"worker_extension_cls": GROUPED_LORA} if is_cpu_build() else {}
    return complete_engine_arguments(defaults | section.engine, section.num_gpus)


def _lora_arguments(paths: dict[str, Path]) -> list[str]:
    if not paths:
        return []
    configs = []
    for path in paths.values():
        configs.append(json.loads((path / "adapter_config.json").read_text()))
    # Training has already rounded each rank up to one that vLLM allows.
    max_rank = max(config["r"] for config in configs)
    modules = []
    for name, path in paths.items():
        # As JSON, not as `name=path`: the path may contain a "=".
        module = {"name": name, "path": str(path)}
        modules.append(json.dumps(module))
    return [
        "--enable-lora",
        "--max-lora-rank",
        str(max_rank),
        # All of them at once, so that none is swapped out between two requests.
        "--max-loras",
        str(len(paths)),
        *_target_arguments(configs),
        "--lora-modules",
        *modules,
    ]


def _target_arguments(configs: Iterable[dict[str, Any]]) -> list[str]:
    """Limit LoRA to the layers that have adapters.

    With LoRA on lm_head, vLLM on CPU fails to echo the log-probabilities of a batch.
    """
    layers: set[str] = set()
    for config in configs:
        targets = config["target_modules"]
        if isinstance(targets, str):  # a pattern of PEFT's, which vLLM does not accept
            return []
        layers.update(targets)
    return ["--lora-target-modules", *sorted(layers)]


def _flags(settings: dict[str, Any]) -> list[str]:
    """Turn engine settings into command-line flags."""
    flags = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, dict | list):
            flags += [f"--{name}", json.dumps(value)]
        else:
            flags += [f"--{name}", str(value)]
    return flags
