"""LM Evaluation Harness through the endpoint: each checkpoint runs each task once."""

import asyncio
import hashlib
import json
import math
import os
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypedDict

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.recipe import Harness, HarnessTask
from bezoar_ray.runtime.logs import redirect
from bezoar_ray.runtime.session import beside_driver, errors_as_raised
from bezoar_ray.sources.harness_items import include_paths
from bezoar_ray.store import Store, digest

if TYPE_CHECKING:
    import ray
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager
    from ray.remote_function import RemoteFunction

LOG = "evaluate.log"
Scores = dict[str, dict[str, float | bool | None]]
"""The results of one task: value, standard error and direction of each metric."""
Fingerprints = dict[str, str]
"""The identity of each checkpoint, by its name."""
Result = dict[str, Any]
"""lm-eval's own result of one task."""

# With one prompt per request, HTTP costs more time than a small model.
_PROMPTS_PER_REQUEST = 8
_SAMPLE_SEED = 0
"""Decides which items of a task are drawn. Scores of two runs are of the same items."""


class Settings(TypedDict):
    """The recipe's settings that a Ray task needs to score a checkpoint."""

    include_paths: tuple[str, ...] | None
    offline: bool
    concurrency: int
    chat: bool
    log: str


async def score_all(
    section: Harness,
    store: Store,
    fingerprints: Fingerprints,
    endpoint: Endpoint,
    step: Callable[[], None],
) -> tuple[dict[str, dict[str, Scores]], list[str]]:
    """Score every checkpoint on every task, each pair as one Ray task.

    A pair is skipped if the run directory has its result for the same weights and
    settings.

    Args:
        section: the recipe's `evaluate.harness`.
        store: the run directory.
        fingerprints: the checkpoints.
        endpoint: where the checkpoints are served.
        step: called after each pair.

    Returns:
        `eval.harness` of summary.json, and the files written.
    """
    cache = ResultCache(section, store, fingerprints)
    free_slots = asyncio.Semaphore(section.at_once)
    remote_score = _remote(score)
    settings = _settings(section, store)

    async def score_one(name: str, task: HarnessTask) -> Scores:
        result = cache.get(name, task)
        if result is None:
            async with free_slots:
                with errors_as_raised():
                    result = await remote_score.remote(settings, name, task, endpoint)
            # At once, so that a killed run repeats only the tasks that were under way.
            cache.put(name, task, result)
        step()
        return compact(result, task)

    pairs = [(name, task) for name in fingerprints for task in section.all_tasks]
    all_scores = await to_the_end(score_one(name, task) for name, task in pairs)
    tables: dict[str, dict[str, Scores]] = {}
    for name in fingerprints:
        tables[name] = {}
    for (name, task), scores in zip(pairs, all_scores, strict=True):
        title = section.name_of(task)
        tables[name][title] = scores
    files = [layout.harness(name) for name in fingerprints] if pairs else []
    return tables, files


def warm_up(section: Harness, store: Store) -> "list[ray.ObjectRef[None]]":
    """Import lm-eval in the scoring processes while the endpoint starts.

    There is no need to wait for the returned references.
    """
    remote_import = _remote(_import_lm_eval)
    settings = _settings(section, store)
    return [remote_import.remote(settings) for _ in range(section.at_once)]


def _remote(function: Callable[..., object]) -> "RemoteFunction":
    """Make a Ray task that runs on the driver's node.

    The endpoint listens on that node's localhost. The task reserves no CPU: most of the
    time it waits for the endpoint.
    """
    import ray

    strategy: Any = beside_driver()  # Ray's types accept strategies by name only
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(function)


def _import_lm_eval(settings: Settings) -> None:
    _task_manager(**settings)


class ResultCache:
    """lm-eval's results in `eval/harness/<name>.json`.

    Each result has a key: a digest of everything that could change it.
    """

    def __init__(self, section: Harness, store: Store, fingerprints: Fingerprints):
        self._section = section
        self._store = store
        self._fingerprints = fingerprints
        folders = include_paths(section)
        self._custom_tasks_digest = digest(*map(Path, folders)) if folders else None

    def get(self, name: str, task: HarnessTask) -> Result | None:
        """Return lm-eval's full result, or None if no result has the same key."""
        key = self._key(name, task)
        # By key and not by title: an older result counts again if
        # the recipe returns to it.
        for entry in self._load(name).values():
            if entry["key"] == key:
                result: Result = entry["result"]
                return result
        return None

    def put(self, name: str, task: HarnessTask, result: Result) -> None:
        """Save a result.

        Results of other tasks stay. So does an earlier result of this task with other
        settings or weights; it moves to the title `<task> (<key>)`.
        """
        entries = self._load(name)
        title = self._section.name_of(task)
        earlier = entries.get(title)
        if earlier:
            entries[f"{title} ({earlier['key']})"] = earlier
        key = self._key(name, task)
        entries[title] = {"key": key, "result": result}
        contents = {"checkpoint": name, "tasks": entries}
        self._store.replace_json(layout.harness(name), contents)

    def _load(self, name: str) -> dict[str, Any]:
        saved = self._store.read_json(layout.harness(name))
        if not saved:
            return {}
        entries: dict[str, Any] = saved["tasks"]
        return entries

    def _key(self, name: str, task: HarnessTask) -> str:
        fields = [
            self._fingerprints[name],
            task.task,
            task.num_fewshot,
            task.limit,
            self._section.apply_chat_template,
            self._custom_tasks_digest,
            # Another version may word prompts or compute metrics otherwise.
            metadata.version("lm-eval"),
        ]
        if task.sample:
            fields.append(f"sample {task.sample}, seed {_SAMPLE_SEED}")
        data = json.dumps(fields).encode()
        return hashlib.sha256(data).hexdigest()[:16]


def compact(result: Result, task: HarnessTask) -> Scores:
    """Extract all metrics of one task from lm-eval's result.

    lm-eval names a metric `name,filter`. The filter `none` is dropped here, and the
    recipe's metric gets the name that the recipe uses.

    Returns:
        `{metric: {"value", "stderr", "higher_is_better"}}`, the recipe's metric last.
        `higher_is_better` is None if lm-eval does not know the direction. It is absent
        if lm-eval's version did not report directions yet.

    Raises:
        RecipeError: the task does not have this metric; the message lists its metrics.
    """
    keys = []
    # Keys without a comma, such as `alias`, are no metrics.
    for key in result["results"][task.task]:
        if "," in key and "_stderr," not in key:
            keys.append(key)
    for metric in (task.metric, *(entry.metric for entry in task.bias)):
        if _find_metric(keys, metric) is None:
            known = ", ".join(key.partition(",")[0] for key in keys)
            raise RecipeError(
                f"evaluate.harness.tasks: {task.task} has no metric {metric!r}. It has: {known}"
            )
    recipe_key = _find_metric(keys, task.metric)
    assert recipe_key  # found above
    scores: Scores = {}
    for key in keys:
        if key != recipe_key:
            scores[key.removesuffix(",none")] = _metric(result, task.task, key)
    return scores | {task.metric: _metric(result, task.task, recipe_key)}


def _find_metric(keys: list[str], metric: str) -> str | None:
    """Return the first key that `metric` names, with or without its filter."""
    for key in keys:
        if metric in (key, key.partition(",")[0]):
            return key
    return None


def _metric(result: Result, task: str, key: str) -> dict[str, float | bool | None]:
    values = result["results"][task]
    name, _, filter_name = key.partition(",")
    metric: dict[str, float | bool | None] = {
        "value": _finite(values[key]),
        "stderr": _finite(values.get(f"{name}_stderr,{filter_name}")),
    }
    if "higher_is_better" in result:
        directions = result["higher_is_better"].get(task, {})
        metric["higher_is_better"] = directions.get(name)
    return metric


def _finite(value: object) -> float | None:
    """Return a finite number as a float, anything else as None.

    lm-eval writes "N/A" for a missing error, and JSON cannot hold NaN or inf.
    """
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def score(
    settings: Settings, name: str, task: HarnessTask, endpoint: Endpoint
) -> Result:
    """Run lm-eval for one checkpoint and one task.

    It runs as a Ray task, so that lm-eval's imports and output stay out of the driver.

    Returns:
        lm-eval's result as plain JSON values.

    Raises:
        BezoarError: lm-eval failed; the message names task, checkpoint and log.
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
            samples=_drawn_items(manager, task),
            apply_chat_template=settings["chat"],
            task_manager=manager,
            log_samples=False,
        )
    except Exception as error:
        raise BezoarError(
            f"lm-eval failed on evaluate.harness.tasks {task.task!r} for {name}: {type(error).__name__}: {error}. "
            f"See its log, {settings['log']}. `lm-eval ls tasks` lists all tasks."
        ) from None
    return json.loads(json.dumps(result, default=handle_non_serializable))


def _drawn_items(
    manager: "TaskManager", task: HarnessTask
) -> dict[str, list[int]] | None:
    """Return the indices of the items that `sample` draws; None without a `sample`.

    A group of tasks gives so many items of each of its tasks.
    """
    if not task.sample:
        return None
    drawn = {}
    for name, entry in manager.load(task.task)["tasks"].items():
        total = len(list(entry.eval_docs))
        rng = Random(_SAMPLE_SEED)
        drawn[name] = sorted(rng.sample(range(total), min(total, task.sample)))
    return drawn


def _settings(section: Harness, store: Store) -> Settings:
    return {
        "include_paths": include_paths(section),
        "offline": section.include_path == "tiny",
        "concurrency": section.concurrency,
        "chat": section.apply_chat_template,
        "log": str(store.log(LOG)),
    }


@lru_cache(maxsize=1)
def _task_manager(
    include_paths: tuple[str, ...] | None, offline: bool, log: str, **_: object
) -> "TaskManager":
    """Return lm-eval's task manager, made once in each process.

    Ray reuses a worker process for one task after another.
    """
    redirect(log)
    # Before the import of lm-eval: huggingface_hub reads these variables only once.
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_paths)


def client(settings: Settings, name: str, endpoint: Endpoint) -> "LocalCompletionsAPI":
    """Make lm-eval's client for one checkpoint.

    Without the chat template, a task writes whole prompts, control tokens included.
    """
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from bezoar_ray.evaluate.completions import ChatCompletions

    client_class = ChatCompletions if settings["chat"] else LocalCompletionsAPI
    return client_class(**_client_arguments(settings, name, endpoint))


def _client_arguments(
    settings: Settings, name: str, endpoint: Endpoint
) -> dict[str, object]:
    add_bos = not settings["chat"] and _begins_with_bos(endpoint.tokenizer)
    return {
        "model": name,
        "base_url": f"{endpoint.base_url}/completions",
        # Without a header, lm-eval sends the user's OPENAI_API_KEY.
        "header": {"Authorization": "Bearer none"},
        "tokenizer": endpoint.tokenizer,
        "tokenizer_backend": "huggingface",
        # As ids, since the server would put a second
        # beginning-of-sequence token before text.
        "tokenized_requests": True,
        "add_bos_token": add_bos,
        "max_length": endpoint.context,
        "num_concurrent": settings["concurrency"],
        "batch_size": _PROMPTS_PER_REQUEST,
    }


def _begins_with_bos(folder: str) -> bool:
    """Return whether this tokenizer starts a text with its beginning-of-sequence token.

    The prompts then start with it too, as the base's texts did in pre-training.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.bos_token_id is None:
        return False
    first_id: int = tokenizer("a").input_ids[0]
    return first_id == tokenizer.bos_token_id
