"""LM Evaluation Harness through the endpoint: one result per checkpoint and task, never measured twice."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.logs import redirect
from bezoar_ray.recipe import Harness, HarnessTask
from bezoar_ray.sources.harness import include_path
from bezoar_ray.store import Store, digest

LOG = "logs/evaluate.log"
_PROMPTS_PER_REQUEST = 8  # one prompt a request costs more in HTTP than in a small model


@dataclass(frozen=True)
class Endpoint:
    """Where the checkpoints answer: `base_url` ends in /v1, `context` is the longest prompt and answer in tokens."""

    base_url: str
    tokenizer: str
    context: int


async def score_all(
    part: Harness, store: Store, fingerprints: dict[str, str], endpoint: Endpoint, scorer: Any, step: Callable[[], None]
) -> tuple[dict[str, Any], list[str]]:
    """Every task for every checkpoint, except where there is a result for just these weights and settings.

    Returns:
        `eval.harness` of summary.json, and the files written.
    """
    shelf = Shelf(part, store, fingerprints)
    tables: dict[str, Any] = {name: {} for name in fingerprints}
    for name in fingerprints:
        for task in part.tasks:
            result = shelf.find(name, task)
            if result is None:
                result = await _remote(scorer.score.remote(name, task, endpoint))
                shelf.put(name, task, result)
            tables[name][task.task] = compact(result, task)
            step()
    return tables, [file_of(name) for name in fingerprints if part.tasks]


async def _remote(reference: Any) -> Any:
    """What a Ray actor returns; its error as it was raised there, without Ray's traceback around it."""
    from ray.exceptions import RayTaskError

    try:
        return await reference
    except RayTaskError as error:
        if isinstance(error.cause, BezoarError):
            raise error.cause from None
        raise


class Shelf:
    """The results in `eval/harness/<name>.json`, each under the key of what it was measured with."""

    def __init__(self, part: Harness, store: Store, fingerprints: dict[str, str]):
        self._part, self._store, self._fingerprints = part, store, fingerprints
        folder = include_path(part)
        self._tasks = digest(Path(folder)) if folder else None

    def find(self, name: str, task: HarnessTask) -> dict[str, Any] | None:
        """lm-eval's whole result, or None where there is none with an equal key."""
        entry = self._load(name).get(task.task)
        return entry["result"] if entry and entry["key"] == self._key(name, task) else None

    def put(self, name: str, task: HarnessTask, result: dict[str, Any]) -> None:
        """Keep a result, beside those of the other tasks."""
        tasks = self._load(name) | {task.task: {"key": self._key(name, task), "result": result}}
        self._store.replace_json(file_of(name), {"checkpoint": name, "tasks": tasks})

    def _load(self, name: str) -> dict[str, Any]:
        return (self._store.read_json(file_of(name)) or {"tasks": {}})["tasks"]

    def _key(self, name: str, task: HarnessTask) -> str:
        asked = [self._fingerprints[name], task.task, task.num_fewshot, task.limit, self._part.apply_chat_template]
        return hashlib.sha256(json.dumps([*asked, self._tasks]).encode()).hexdigest()[:16]


def file_of(name: str) -> str:
    """The file of a checkpoint's results."""
    return f"eval/harness/{name}.json"


def compact(result: dict[str, Any], task: HarnessTask) -> dict[str, dict[str, float | None]]:
    """The recipe's metric of one task: `{metric: {"value", "stderr"}}`.

    Raises:
        RecipeError: the task has no such metric; the message names those that it has.
    """
    values = result["results"][task.task]
    for key in values:
        name, _, rule = key.partition(",")
        if task.metric in (key, name):
            stderr = values.get(f"{name}_stderr,{rule}")
            number = float(stderr) if isinstance(stderr, int | float) else None
            return {task.metric: {"value": float(values[key]), "stderr": number}}
    known = ", ".join(key.partition(",")[0] for key in values if "," in key and "_stderr" not in key)
    raise RecipeError(f"evaluate.harness.tasks: {task.task} has no metric {task.metric!r}. It has: {known}")


def scorer(part: Harness, log: Path) -> Any:
    """A Ray actor that runs lm-eval, whose imports and noise stay out of this process; call `score.remote`."""
    import ray

    settings = {
        "include_path": include_path(part),
        "offline": part.include_path == "tiny",
        "concurrency": part.concurrency,
        "chat": part.apply_chat_template,
    }
    return ray.remote(num_cpus=0)(Scorer).remote(settings, str(log))


class Scorer:
    """lm-eval in a process of its own, so that its import runs while the endpoint starts."""

    def __init__(self, settings: dict[str, Any], log: str):
        redirect(log)
        if settings["offline"]:
            os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        from lm_eval.tasks import TaskManager

        self._settings, self._log = settings, log
        self._tasks = TaskManager(include_path=settings["include_path"])

    def score(self, name: str, task: HarnessTask, endpoint: Endpoint) -> dict[str, Any]:
        """lm-eval's result of one checkpoint on one task, as plain JSON values."""
        from lm_eval import simple_evaluate
        from lm_eval.utils import handle_non_serializable

        try:
            result = simple_evaluate(
                model="local-completions",
                model_args=self._model_arguments(name, endpoint),
                tasks=[task.task],
                num_fewshot=task.num_fewshot,
                limit=task.limit,
                apply_chat_template=self._settings["chat"],
                batch_size=_PROMPTS_PER_REQUEST,
                task_manager=self._tasks,
                log_samples=False,
            )
        except Exception as error:
            raise BezoarError(
                f"lm-eval failed on evaluate.harness.tasks {task.task!r} for {name}: {type(error).__name__}: {error}. "
                f"Its log is {self._log}; `lm-eval ls tasks` lists the tasks that it has."
            ) from None
        return json.loads(json.dumps(result, default=handle_non_serializable))

    def _model_arguments(self, name: str, endpoint: Endpoint) -> dict[str, Any]:
        return {
            "model": name,
            "base_url": f"{endpoint.base_url}/completions",
            "header": {"Authorization": "Bearer none"},  # else lm-eval sends the user's OPENAI_API_KEY
            "tokenizer": endpoint.tokenizer,
            "tokenizer_backend": "huggingface",
            "tokenized_requests": True,
            "add_bos_token": not self._settings["chat"] and _begins_with_bos(endpoint.tokenizer),
            "max_length": endpoint.context,
            "num_concurrent": self._settings["concurrency"],
        }


def _begins_with_bos(folder: str) -> bool:
    """Whether this tokenizer puts a beginning-of-sequence token first, as the base saw it in pre-training."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
