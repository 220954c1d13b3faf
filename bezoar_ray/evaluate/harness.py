"""LM Evaluation Harness through the endpoint: one result per checkpoint and task, never measured twice."""

import asyncio
import hashlib
import json
import math
import os
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.recipe import Harness, HarnessTask
from bezoar_ray.runtime.logs import redirect
from bezoar_ray.runtime.session import beside_driver, errors_as_raised
from bezoar_ray.sources.harness_items import include_path
from bezoar_ray.store import Store, digest

if TYPE_CHECKING:
    import ray
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager
    from ray.remote_function import RemoteFunction

LOG = "evaluate.log"
Scores = dict[str, dict[str, float | bool | None]]
"""Of one task: value, standard error and direction by metric."""
_PROMPTS_PER_REQUEST = (
    8  # one prompt a request costs more in HTTP than in a small model
)


class Settings(TypedDict):
    """What a Ray task is told of the recipe."""

    include_path: str | None
    offline: bool
    concurrency: int
    chat: bool
    log: str


async def score_all(
    part: Harness,
    store: Store,
    fingerprints: dict[str, str],
    endpoint: Endpoint,
    step: Callable[[], None],
) -> tuple[dict[str, dict[str, Scores]], list[str]]:
    """Every task for every checkpoint as a Ray task, where there is no result for just these weights and settings.

    Returns:
        `eval.harness` of summary.json, and the files written.
    """
    shelf, slots = Shelf(part, store, fingerprints), asyncio.Semaphore(part.at_once)
    run, settings = _remote(score), _settings(part, store)

    async def score_one(name: str, task: HarnessTask) -> Scores:
        result = shelf.find(name, task)
        if result is None:
            async with slots:
                with errors_as_raised():
                    result = await run.remote(settings, name, task, endpoint)
            shelf.put(name, task, result)
        step()
        return compact(result, task)

    asked = [(name, task) for name in fingerprints for task in part.all_tasks]
    scores = await to_the_end(score_one(name, task) for name, task in asked)
    tables: dict[str, dict[str, Scores]] = {name: {} for name in fingerprints}
    for (name, task), found in zip(asked, scores, strict=True):
        tables[name][part.name_of(task)] = found
    return tables, [layout.harness(name) for name in fingerprints if asked]


def warm_up(part: Harness, store: Store) -> "list[ray.ObjectRef[None]]":
    """Have the processes that will score import lm-eval while the endpoint starts; nobody need wait for them."""
    return [
        _remote(_import).remote(_settings(part, store)) for _ in range(part.at_once)
    ]


def _remote(function: Callable[..., object]) -> "RemoteFunction":
    """A Ray task beside the driver, where the endpoint answers on localhost; it mostly waits for it."""
    import ray

    strategy: Any = beside_driver()  # Ray's types know strategies by name alone
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(function)


def _import(settings: Settings) -> None:
    _task_manager(**settings)


class Shelf:
    """The results in `eval/harness/<name>.json`, each under the key of what it was measured with."""

    def __init__(self, part: Harness, store: Store, fingerprints: dict[str, str]):
        self._part, self._store, self._fingerprints = part, store, fingerprints
        folder = include_path(part)
        self._tasks = digest(Path(folder)) if folder else None

    def find(self, name: str, task: HarnessTask) -> dict[str, Any] | None:
        """lm-eval's whole result, or None where there is none with an equal key."""
        key = self._key(name, task)
        return next(
            (
                entry["result"]
                for entry in self._load(name).values()
                if entry["key"] == key
            ),
            None,
        )

    def put(self, name: str, task: HarnessTask, result: dict[str, Any]) -> None:
        """Keep a result, beside those of the other tasks, and of the same one with other settings or weights."""
        tasks, title = self._load(name), self._part.name_of(task)
        if before := tasks.get(title):
            tasks[f"{title} ({before['key']})"] = before
        tasks[title] = {"key": self._key(name, task), "result": result}
        self._store.replace_json(
            layout.harness(name), {"checkpoint": name, "tasks": tasks}
        )

    def _load(self, name: str) -> dict[str, Any]:
        return (self._store.read_json(layout.harness(name)) or {"tasks": {}})["tasks"]

    def _key(self, name: str, task: HarnessTask) -> str:
        asked = [
            self._fingerprints[name],
            task.task,
            task.num_fewshot,
            task.limit,
            self._part.apply_chat_template,
        ]
        asked += [self._tasks, metadata.version("lm-eval")]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def compact(result: dict[str, Any], task: HarnessTask) -> Scores:
    """All metrics of one task: `{metric: {"value", "stderr", "higher_is_better"}}`.

    lm-eval calls a metric `name,filter`. Here the filter `none` is left out, and the recipe's metric has the name that
    the recipe gives it. `higher_is_better` is None where lm-eval does not know; old results of lm-eval have none.

    Raises:
        RecipeError: the task has no such metric; the message names those that it has.
    """
    keys = [
        key
        for key in result["results"][task.task]
        if "," in key and "_stderr," not in key
    ]
    asked = next(
        (key for key in keys if task.metric in (key, key.partition(",")[0])), None
    )
    if asked is None:
        known = ", ".join(key.partition(",")[0] for key in keys)
        raise RecipeError(
            f"evaluate.harness.tasks: {task.task} has no metric {task.metric!r}. It has: {known}"
        )
    further = {
        key.removesuffix(",none"): _metric(result, task.task, key)
        for key in keys
        if key != asked
    }
    return further | {task.metric: _metric(result, task.task, asked)}


def _metric(
    result: dict[str, Any], task: str, key: str
) -> dict[str, float | bool | None]:
    values, (name, _, rule) = result["results"][task], key.partition(",")
    metric = {
        "value": _finite(values[key]),
        "stderr": _finite(values.get(f"{name}_stderr,{rule}")),
    }
    if "higher_is_better" in result:
        metric["higher_is_better"] = result["higher_is_better"].get(task, {}).get(name)
    return metric


def _finite(number: object) -> float | None:
    """None where it is no number, or one that JSON cannot hold."""
    return (
        float(number)
        if isinstance(number, int | float) and math.isfinite(number)
        else None
    )


def score(
    settings: Settings, name: str, task: HarnessTask, endpoint: Endpoint
) -> dict[str, Any]:
    """lm-eval's result of one checkpoint on one task, as plain JSON values; a Ray task, which keeps its imports and its
    noise out of the driver.

    Raises:
        BezoarError: lm-eval failed; names task, checkpoint and log.
    """
    manager = _task_manager(**settings)
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable

    try:
        result = simple_evaluate(
            model=client(settings, name, endpoint),
            tasks=[task.task],
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            apply_chat_template=settings["chat"],
            task_manager=manager,
            log_samples=False,
        )
    except Exception as error:
        raise BezoarError(
            f"lm-eval failed on evaluate.harness.tasks {task.task!r} for {name}: {type(error).__name__}: {error}. "
            f"Its log is {settings['log']}; `lm-eval ls tasks` lists the tasks that it has."
        ) from None
    return json.loads(json.dumps(result, default=handle_non_serializable))


def _settings(part: Harness, store: Store) -> Settings:
    return {
        "include_path": include_path(part),
        "offline": part.include_path == "tiny",
        "concurrency": part.concurrency,
        "chat": part.apply_chat_template,
        "log": str(store.log(LOG)),
    }


@lru_cache(maxsize=1)
def _task_manager(
    include_path: str | None, offline: bool, log: str, **_: object
) -> "TaskManager":
    """Made once in a process of Ray's, which scores one task after the other."""
    redirect(log)
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def client(settings: Settings, name: str, endpoint: Endpoint) -> "LocalCompletionsAPI":
    """What asks the endpoint for lm-eval. Without the chat template a task writes whole prompts, control tokens too."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from bezoar_ray.evaluate.completions import ChatCompletions

    chosen = ChatCompletions if settings["chat"] else LocalCompletionsAPI
    return chosen(**_model_arguments(settings, name, endpoint))


def _model_arguments(
    settings: Settings, name: str, endpoint: Endpoint
) -> dict[str, object]:
    return {
        "model": name,
        "base_url": f"{endpoint.base_url}/completions",
        "header": {
            "Authorization": "Bearer none"
        },  # else lm-eval sends the user's OPENAI_API_KEY
        "tokenizer": endpoint.tokenizer,
        "tokenizer_backend": "huggingface",
        "tokenized_requests": True,
        "add_bos_token": not settings["chat"] and _begins_with_bos(endpoint.tokenizer),
        "max_length": endpoint.context,
        "num_concurrent": settings["concurrency"],
        "batch_size": _PROMPTS_PER_REQUEST,
    }


def _begins_with_bos(folder: str) -> bool:
    """Whether this tokenizer puts a beginning-of-sequence token first, as the base saw it in pre-training."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return (
        tokenizer.bos_token_id is not None
        and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    )
