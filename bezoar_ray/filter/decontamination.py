"""Decontamination: rows that share a run of words with an item of what the recipe evaluates on.

Overlap of word n-grams, n = 13, as in GPT-3 (arXiv 2005.14165, appendix C); a shorter item has to stand in the row
whole. A run that stands in more than ten items of a task is the task's form, not an item's content.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import xxhash

from bezoar_ray.data.schema import Sample
from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.session import errors_as_raised

if TYPE_CHECKING:
    import ray

_N = 13
_SHORTEST = 5  # words of an item that is shorter than a run and still tells
_FORM = 10  # items


class Benchmarks:
    """The runs of words of all items, by hash. Nothing in it holds a text."""

    def __init__(self, items: Iterable[tuple[str, str]]):
        by_name: dict[str, Counter[tuple[int, int]]] = {}
        for name, text in items:
            words = _words(text)
            length = min(_N, len(words))
            by_name.setdefault(name, Counter()).update(
                {*_runs(words, length)} if length >= _SHORTEST else ()
            )
        self.names = list(by_name)
        self._owner = {
            run: place
            for place, counts in enumerate(by_name.values())
            for run, items_with_it in counts.items()
            if items_with_it <= _FORM
        }
        self._lengths = sorted({length for length, _ in self._owner})

    def find(self, sample: Sample) -> str | None:
        """What a row shares a run of words with."""
        words = _words(f"{sample.task}\n{sample.response}")
        for length in self._lengths:
            for run in _runs(words, length):
                if run in self._owner:
                    return self.names[self._owner[run]]
        return None


def start_reading(recipe: Recipe) -> "Benchmarks | ray.ObjectRef[Benchmarks] | None":
    """Begin to read what the recipe evaluates on, beside other work; `finish_reading` gives it.

    lm-eval's imports and downloads run in a Ray task, where there are tasks of its own.
    """
    if not recipe.filter.decontaminate:
        return None
    if not (recipe.evaluate.harness and recipe.evaluate.harness.all_tasks):
        return read(recipe)
    import ray

    return ray.remote(num_cpus=0)(read).remote(recipe)


def finish_reading(
    started: "Benchmarks | ray.ObjectRef[Benchmarks] | None",
) -> Benchmarks | None:
    """What `start_reading` began to read. Raises `RecipeError` where a task or a file cannot be read."""
    if started is None or isinstance(started, Benchmarks):
        return started
    import ray

    with errors_as_raised():
        return ray.get(started)


def read(recipe: Recipe) -> Benchmarks:
    """The benchmarks of a recipe."""
    return Benchmarks(_items(recipe))


def _items(recipe: Recipe) -> Iterator[tuple[str, str]]:
    from bezoar_ray.sources.harness_items import task_texts
    from bezoar_ray.sources.mt_bench_files import load_questions

    if recipe.evaluate.mt_bench:
        for question in load_questions(recipe.evaluate.mt_bench):
            yield from (("mt_bench", turn) for turn in question.turns)
    if recipe.evaluate.harness:
        if recipe.evaluate.harness.include_path == "tiny":
            os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        yield from task_texts(recipe.evaluate.harness)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(words: list[str], length: int) -> Iterator[tuple[int, int]]:
    """Length and hash of each run of so many words."""
    for begin in range(len(words) - length + 1):
        yield (
            length,
            xxhash.xxh3_64_intdigest(" ".join(words[begin : begin + length]).encode()),
        )
