"""What vLLM's own server is told: the base, its tokenizer and template, and a joined LoRA per checkpoint."""

import json
from collections.abc import Iterable
from typing import Any

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.engine import on_cpu
from bezoar_ray.llm.models import model_path
from bezoar_ray.recipe import CHECKPOINTS, Recipe, Serve
from bezoar_ray.store import Store

_GROUPED_LORA = "bezoar_ray.serve.cpu_lora.GroupedLora"
_BASE = "checkpoints/base"


def model_names(store: Store) -> list[str]:
    """The checkpoints that the run directory holds, in the order of training; base is always served."""
    return [CHECKPOINTS[0], *(name for name in CHECKPOINTS[1:] if store.exists(_joined(name)))]


def engine_arguments(recipe: Recipe, store: Store) -> list[str]:
    """The command line of vLLM's server.

    Raises:
        BezoarError: there is no base checkpoint.
    """
    template = store.path(f"{_BASE}/chat_template.jinja")
    if not template.is_file():
        raise BezoarError(f"{template}: missing. Run the sft stage first: it writes base's tokenizer and template.")
    model = recipe.base
    arguments = ["--model", model_path(model.model), "--served-model-name", CHECKPOINTS[0]]
    arguments += ["--tokenizer", str(store.path(_BASE)), "--dtype", recipe.serve.dtype]
    arguments += ["--chat-template", str(template), "--chat-template-content-format", "string"]
    arguments += ["--generation-config", "vllm"]  # else the base's own sampling defaults enter every answer
    arguments += ["--revision", model.revision] if model.revision else []
    arguments += ["--trust-remote-code"] if model.trust_remote_code else []
    return arguments + _lora_flags(store) + _flags(_engine(recipe.serve))


def _engine(part: Serve) -> dict[str, Any]:
    engine = part.engine if part.num_gpus else on_cpu({"worker_extension_cls": _GROUPED_LORA} | part.engine)
    return {"disable_log_stats": True} | engine


def _lora_flags(store: Store) -> list[str]:
    paths = {name: store.path(_joined(name)) for name in model_names(store)[1:]}
    if not paths:
        return []
    configs = [json.loads((path / "adapter_config.json").read_text()) for path in paths.values()]
    rank = max(config["r"] for config in configs)  # one that vLLM allows: training has filled it up
    limits = ["--max-lora-rank", str(rank), "--max-loras", str(len(paths))]
    modules = [f"{name}={path}" for name, path in paths.items()]
    return ["--enable-lora", *limits, *_targets(configs), "--lora-modules", *modules]


def _targets(configs: Iterable[dict[str, Any]]) -> list[str]:
    """Only the layers with adapters: with LoRA on lm_head, vLLM on CPU fails to echo log-probabilities of a batch."""
    targets = [config["target_modules"] for config in configs]
    if any(isinstance(names, str) for names in targets):  # a pattern of peft's, which vLLM does not take
        return []
    return ["--lora-target-modules", *sorted({name for names in targets for name in names})]


def _flags(engine: dict[str, Any]) -> list[str]:
    flags = []
    for key, value in engine.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return flags


def _joined(name: str) -> str:
    return f"checkpoints/{name}/joined"
