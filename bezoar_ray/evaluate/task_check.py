"""Check a recipe's lm-eval tasks: `python -m bezoar_ray.evaluate.task_check`.

The request is JSON on standard input: `tasks`, `include_path` and `context`. The answer
is one line of JSON: `problems` and `unchecked`. Each task is imported. If its data are
on this machine, its first item is built, too.
"""

import contextlib
import difflib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_FIELD = "evaluate.harness.tasks"


def main() -> None:
    """Check the requested tasks and print the answer as the last line."""
    request = json.load(sys.stdin)
    problems: list[str] = []
    unchecked: list[str] = []
    # Tasks may print while they are imported. Standard output is for the answer only.
    with contextlib.redirect_stdout(sys.stderr):
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=request["include_path"])
        for task in request["tasks"]:
            found = list(configuration_problems(manager, task, request["context"]))
            problems += found
            if not found:
                _build_first_item(manager, task["task"], problems, unchecked)
    print(json.dumps({"problems": problems, "unchecked": unchecked}))


def configuration_problems(
    manager: "TaskManager", task: dict[str, str], context: int | None
) -> Iterator[str]:
    """Yield the problems that are visible in a task's configuration.

    Args:
        manager: lm-eval's, which knows all tasks.
        task: the recipe's task, with its metric.
        context: the engine's context length in tokens, if the recipe sets it.
    """
    name = task["task"]
    entry = manager.task_index.get(name)
    if entry is None:
        similar = difflib.get_close_matches(name, manager.all_tasks, 3)
        suggestion = f"; did you mean {' or '.join(similar)}?" if similar else ""
        yield f"{_FIELD}: lm-eval has no task {name!r}{suggestion}"
        return
    kind = entry.kind.name
    config = entry.cfg or {}
    if kind == "TAG":
        members = sorted(entry.tags)
        yield (
            f"{_FIELD}: {name!r} is a tag and has no result of its own. "
            f"List its tasks instead: {', '.join(members[:8])}"
        )
        return
    if kind == "GROUP" and not config.get("aggregate_metric_list"):
        members = [str(member) for member in config.get("task", [])]
        yield (
            f"{_FIELD}: the group {name!r} has no common metric. "
            f"List its tasks instead: {', '.join(members[:8])}"
        )
        return
    metrics = _listed_metrics(kind, config)
    # A metric that is given as a function names its results itself.
    by_function = any("/" in known or "function" in known for known in metrics)
    metric = task["metric"]
    if metrics and not by_function and metric.partition(",")[0] not in metrics:
        names = ", ".join(dict.fromkeys(metrics))
        yield f"{_FIELD}: {name} has no metric {metric!r}. It has: {names}"
    longest = (config.get("generation_kwargs") or {}).get("max_gen_toks")
    if context and longest and longest >= context:
        yield (
            f"{_FIELD}: {name} requests answers of {longest:,} tokens, but serve.engine.max_model_len is {context:,}. "
            "That leaves no space for its prompts"
        )


def _listed_metrics(kind: str, config: dict[str, Any]) -> list[str]:
    """Return the metrics in a task's or a group's configuration."""
    field = "aggregate_metric_list" if kind == "GROUP" else "metric_list"
    entries = config.get(field) or []
    metrics = []
    for entry in entries:
        if isinstance(entry, dict):
            metrics.append(str(entry.get("metric")))
    return metrics


def _build_first_item(
    manager: "TaskManager", name: str, problems: list[str], unchecked: list[str]
) -> None:
    """Import a task and build the prompt of its first item, if its data are here."""
    try:
        for task in manager.load(name)["tasks"].values():
            task.doc_to_text(next(iter(task.eval_docs)))
    except ModuleNotFoundError as error:
        problems.append(
            f"{_FIELD}: {name} needs the Python package {error.name}: pip install {error.name}"
        )
    except Exception as error:
        # The usual cause is that the data are not on this machine. A fault in the
        # task's own code may be a consequence of that, so it is not a problem yet.
        message = " ".join(str(error).split())[:120]
        unchecked.append(
            f"{_FIELD}: the data of {name} ({type(error).__name__}: {message})"
        )


if __name__ == "__main__":
    main()
