"""The items of lm-eval's tasks, which training data must not contain."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Harness
from bezoar_ray.runtime.embedded_world import find_bias_tasks, find_world

if TYPE_CHECKING:
    from lm_eval.api.task import Task


def include_paths(section: Harness) -> tuple[str, ...] | None:
    """The folders of extra task files; those of the embedded world for `tiny`."""
    if section.include_path != "tiny":
        return (section.include_path,) if section.include_path else None
    folders = [find_world().harness]
    # By need: results that were measured without these tasks stay valid.
    if any(task.bias for task in section.all_tasks):
        folders.append(find_bias_tasks())
    return tuple(map(str, folders))


def task_texts(section: Harness) -> Iterator[tuple[str, str]]:
    """The texts of all items of the recipe's tasks, each with the name of its task.

    An item gives its question, its choices and its target. A group gives the items of
    its tasks.

    Raises:
        RecipeError: a task cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_paths(section))
    for entry in section.all_tasks:
        try:
            tasks = manager.load(entry.task)["tasks"]
            for name, task in tasks.items():
                for item in task.eval_docs:
                    for text in _item_texts(task, item):
                        yield name, text
        except Exception as error:  # A task's own code can fail in any way.
            raise RecipeError(
                f"evaluate.harness.tasks: cannot load {entry.task!r}, whose items must "
                f"stay out of the training data: {type(error).__name__}: {error}. "
                "`lm-eval ls tasks` lists the tasks; "
                "--set filter.decontaminate=false skips this check"
            ) from None


def _item_texts(task: "Task", item: dict[str, object]) -> Iterator[str]:
    """All text that an item shows or expects.

    Some tasks, such as Winogrande, have their text in the choices alone. Numbers are
    left out: they are indices of choices.
    """
    values = [task.doc_to_text(item), task.doc_to_target(item)]
    if task.OUTPUT_TYPE == "multiple_choice":
        values.append(task.doc_to_choice(item))
    for value in values:
        texts = value if isinstance(value, list | tuple) else [value]
        for text in texts:
            if isinstance(text, str):
                yield text
