"""What lm-eval's tasks ask."""

from collections.abc import Iterator

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Harness


def include_path(part: Harness) -> str | None:
    """The folder of further tasks; `tiny` is the embedded world's."""
    if part.include_path != "tiny":
        return part.include_path
    from bezoar_ray.tiny import world

    return str(world().harness)


def task_texts(part: Harness) -> Iterator[tuple[str, str]]:
    """Name and prompt of each item of the recipe's tasks; groups give those of their tasks.

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
                    yield name, str(one.doc_to_text(item))
        except Exception as error:
            raise RecipeError(
                f"evaluate.harness.tasks: cannot load {task.task!r}, to keep its items out of the training data: "
                f"{type(error).__name__}: {error}. `lm-eval ls tasks` lists the tasks; "
                "--set filter.decontaminate=false goes on without"
            ) from None
