"""A user's own scheme: one async function in a file of theirs, shipped as text to wherever the actors run."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cache
from types import ModuleType

from bezoar_ray.data.schema import Sample, Seed
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.generate.task import GenerationTask, call_failed, one_for_each
from bezoar_ray.llm.chat import CallFailed, Chat, Deferred, ModelDied
from bezoar_ray.recipe import CustomCode, CustomScheme


def plan(
    name: str, section: CustomScheme, recipe_seed: int, seeds: Sequence[Seed]
) -> Iterator[GenerationTask]:
    """One task for each drawn seed."""
    return one_for_each(name, recipe_seed, seeds, section.works)


async def run(
    work: GenerationTask, chat: Chat, code: CustomCode
) -> AsyncIterator[Sample]:
    """The rows that the user's function makes of a work.

    Raises:
        BezoarError: the function fails, or yields something else than samples.
    """
    rows = load(code.source, code.function)(work, chat, code.settings)
    try:
        async for sample in rows:
            if not isinstance(sample, Sample):
                raise TypeError(f"it yields {type(sample).__name__}, not Sample")
            yield sample
    except CallFailed as error:
        yield work.sample("own").ended(*call_failed(error))
    except (BezoarError, Deferred, ModelDied):  # for those who run the scheme
        raise
    except Exception as error:
        raise BezoarError(
            f"generate.own.{work.scheme}: {code.function}: {type(error).__name__}: {error}"
        ) from error


@cache
def load(source: str, function: str) -> Callable[..., AsyncIterator[Sample]]:
    """The function, from the text of its file.

    Raises:
        RecipeError: the file does not run, or holds no such function.
    """
    path, _, name = function.rpartition(":")
    module = ModuleType(f"bezoar_ray_own_{abs(hash(source))}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source, path, "exec"), module.__dict__)
        return getattr(module, name)
    except AttributeError as error:
        raise RecipeError(f"generate.own: {path!r} holds no {name!r}") from error
    except Exception as error:
        raise RecipeError(
            f"generate.own: {path!r} does not run: {type(error).__name__}: {error}"
        ) from error
