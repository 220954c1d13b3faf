"""A custom scheme: one async function in a user's file.

The text of the file travels to the actors, which may not see the disk of the driver.
"""

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cache
from types import ModuleType

from bezoar_ray.data.schema import Sample, Seed
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.generate.task import GenerationTask, fail_call, one_task_per_seed
from bezoar_ray.llm.chat import CallFailed, Chat, Deferred, ModelDied
from bezoar_ray.recipe import CustomCode, CustomScheme


def plan(
    name: str,
    section: CustomScheme,
    recipe_seed: int,
    seeds: Sequence[Seed],
) -> Iterator[GenerationTask]:
    """Yield one task for each drawn seed."""
    return one_task_per_seed(name, recipe_seed, seeds, section.works)


async def run(
    task: GenerationTask,
    chat: Chat,
    code: CustomCode,
) -> AsyncIterator[Sample]:
    """Yield the rows that the user's function makes of a task.

    A failed call that the function does not catch ends the task with a failed row.

    Raises:
        BezoarError: The function raises an error, or yields something other than
            samples.
    """
    function = load(code.source, code.function)
    try:
        async for sample in function(task, chat, code.settings):
            if not isinstance(sample, Sample):
                kind = type(sample).__name__
                raise TypeError(f"expected rows of type Sample, found {kind}")
            yield sample
    except CallFailed as error:
        yield fail_call(task.sample("own"), error)
    except (BezoarError, Deferred, ModelDied):
        # The caller handles these: they concern the whole actor or batch.
        raise
    except Exception as error:
        raise BezoarError(
            f"generate.own.{task.scheme}: {code.function}: "
            f"{type(error).__name__}: {error}"
        ) from error


@cache
def load(source: str, function: str) -> Callable[..., AsyncIterator[Sample]]:
    """Load the function from the text of its file.

    Args:
        source: The text of the file.
        function: `path.py:name`; the path is used in messages only.

    Raises:
        RecipeError: The file fails to run, or does not define the function.
    """
    path, _, name = function.rpartition(":")
    module = ModuleType(f"bezoar_ray_own_{abs(hash(source))}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # @dataclass looks up its class's module here
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except Exception as error:
        raise RecipeError(
            f"generate.own: the file {path!r} fails to run: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, name):
        raise RecipeError(
            f"generate.own: the file {path!r} does not define {name!r}. "
            "Check the name after the colon in `function`"
        )
    return getattr(module, name)
