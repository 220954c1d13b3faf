"""Check a recipe's lm-eval tasks: `python -m bezoar_ray.evaluate.task_check`, JSON on standard input and output.

A task is imported and, where its data are on this machine, its first item is built.
"""

import contextlib
import difflib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_FIELD = "evaluate.harness.tasks"


def main() -> None:
    """Look at the tasks asked for; the last line written is the answer."""
    asked = json.load(sys.stdin)
    problems: list[str] = []
    unchecked: list[str] = []
    with contextlib.redirect_stdout(
        sys.stderr
    ):  # what tasks print while they are imported
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=asked["include_path"])
        for task in asked["tasks"]:
            found = list(_known(manager, task, asked["context"]))
            problems += found
            if not found:
                _build(manager, task["task"], problems, unchecked)
    print(json.dumps({"problems": problems, "unchecked": unchecked}))


def _known(
    manager: "TaskManager", task: dict[str, str], context: int | None
) -> Iterator[str]:
    """What is wrong with a task by its configuration alone."""
    name, metric = task["task"], task["metric"]
    entry = manager.task_index.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, manager.all_tasks, 3)
        yield f"{_FIELD}: lm-eval has no task {name!r}" + (
            f"; did you mean {' or '.join(near)}?" if near else ""
        )
        return
    kind, config = entry.kind.name, entry.cfg or {}
    if kind == "TAG":
        members = ", ".join(sorted(entry.tags)[:8])
        yield f"{_FIELD}: {name!r} is a tag, which has no result of its own; name its tasks: {members}"
        return
    if kind == "GROUP" and not config.get("aggregate_metric_list"):
        members = ", ".join(str(member) for member in config.get("task", [])[:8])
        yield f"{_FIELD}: the group {name!r} has no common metric; name its tasks: {members}"
        return
    listed = (
        config.get("aggregate_metric_list" if kind == "GROUP" else "metric_list") or []
    )
    metrics = [str(one.get("metric")) for one in listed if isinstance(one, dict)]
    by_function = any(
        "/" in one or "function" in one for one in metrics
    )  # whose results have names of their own
    if metrics and not by_function and metric.partition(",")[0] not in metrics:
        yield f"{_FIELD}: {name} has no metric {metric!r}. It has: {', '.join(dict.fromkeys(metrics))}"
    longest = (config.get("generation_kwargs") or {}).get("max_gen_toks")
    if context and longest and longest >= context:
        yield (
            f"{_FIELD}: {name} asks for answers of {longest:,} tokens, and serve.engine.max_model_len is {context:,}: "
            "no room is left for its prompts"
        )


def _build(
    manager: "TaskManager", name: str, problems: list[str], unchecked: list[str]
) -> None:
    """Import a task, and build its first item where its data are here."""
    try:
        for one in manager.load(name)["tasks"].values():
            one.doc_to_text(next(iter(one.eval_docs)))
    except ModuleNotFoundError as error:
        problems.append(
            f"{_FIELD}: {name} needs the Python package {error.name}: pip install {error.name}"
        )
    except Exception as error:  # most often its data are not here; a task's own code may fail only for that
        said = " ".join(str(error).split())[:120]
        unchecked.append(
            f"{_FIELD}: the data of {name} ({type(error).__name__}: {said})"
        )


if __name__ == "__main__":
    main()
