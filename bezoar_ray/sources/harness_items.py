"""What lm-eval's tasks ask."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Harness

if TYPE_CHECKING:
    from lm_eval.api.task import Task


def include_path(part: Harness) -> str | None:
    """The folder of further tasks; `tiny` is the embedded world's."""
    if part.include_path != "tiny":
        return part.include_path
    from bezoar_ray.tiny import world

    return str(world().harness)


def task_texts(part: Harness) -> Iterator[tuple[str, str]]:
    """Name and texts of each item of the recipe's tasks, one by one: its question, its choices and its target.

    A task's text may stand in its choices alone, as Winogrande's does. Groups give the items of their tasks.

    Raises:
        RecipeError: a task cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path(part))
    for task in part.all_tasks:
        try:
            loaded = manager.load(task.task)["tasks"]
            for name, one in loaded.items():
                for item in one.eval_docs:
                    yield from ((name, text) for text in _texts(one, item))
        except Exception as error:
            raise RecipeError(
                f"evaluate.harness.tasks: cannot load {task.task!r}, to keep its items out of the training data: "
                f"{type(error).__name__}: {error}. `lm-eval ls tasks` lists the tasks; "
                "--set filter.decontaminate=false goes on without"
            ) from None


def _texts(task: "Task", item: dict[str, object]) -> Iterator[str]:
    """All that an item shows or expects; numbers are places among the choices."""
    shown = [task.doc_to_text(item), task.doc_to_target(item)]
    if task.OUTPUT_TYPE == "multiple_choice":
        shown.append(task.doc_to_choice(item))
    for found in shown:
        for text in found if isinstance(found, list | tuple) else [found]:
            if isinstance(text, str):
                yield text
