"""Decontamination: find rows that share a word n-gram with a benchmark of the recipe.

n is 13, as in GPT-3 (arXiv 2005.14165, appendix C). A shorter benchmark item counts if
the row contains all of it. An n-gram that occurs in more than ten items of a benchmark
is the form of its questions, and does not count.
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
_MIN_WORDS = 5
"""Words of the shortest item that counts."""
_MAX_ITEMS = 10
"""Items of a benchmark in which an n-gram occurs and still counts."""

Ngram = tuple[int, int]
"""Length in words, and hash."""


class Benchmarks:
    """The n-grams of all benchmark items, as hashes and without any text.

    Args:
        items: The name of its benchmark and the text of each item.
    """

    def __init__(self, items: Iterable[tuple[str, str]]):
        # By benchmark: in how many of its items each n-gram occurs.
        item_counts: dict[str, Counter[Ngram]] = {}
        for name, text in items:
            counts = item_counts.setdefault(name, Counter())
            words = _split_words(text)
            length = min(_N, len(words))
            if length >= _MIN_WORDS:
                counts.update(set(_ngrams(words, length)))
        self.names = list(item_counts)
        self._benchmark_index: dict[Ngram, int] = {}
        for index, counts in enumerate(item_counts.values()):
            for ngram, item_count in counts.items():
                if item_count <= _MAX_ITEMS:
                    self._benchmark_index[ngram] = index
        self._lengths = sorted({length for length, _ in self._benchmark_index})

    def find(self, sample: Sample) -> str | None:
        """Return the name of a benchmark that shares an n-gram with a row."""
        words = _split_words(f"{sample.task}\n{sample.response}")
        for length in self._lengths:
            for ngram in _ngrams(words, length):
                if ngram in self._benchmark_index:
                    return self.names[self._benchmark_index[ngram]]
        return None


def start_reading(recipe: Recipe) -> "Benchmarks | ray.ObjectRef[Benchmarks] | None":
    """Begin to read the benchmarks of the recipe. `finish_reading` returns them.

    lm-eval tasks are read in a Ray task beside the model calls, since lm-eval has to be
    imported and its data downloaded.
    """
    if not recipe.filter.decontaminate:
        return None
    if not (recipe.evaluate.harness and recipe.evaluate.harness.all_tasks):
        return read(recipe)
    import ray

    # No CPU of its own: the model actors may hold all of them until their work is done.
    return ray.remote(num_cpus=0)(read).remote(recipe)


def finish_reading(
    started: "Benchmarks | ray.ObjectRef[Benchmarks] | None",
) -> Benchmarks | None:
    """Wait for the benchmarks that `start_reading` began to read.

    Raises:
        RecipeError: A task or a file cannot be read.
    """
    if started is None or isinstance(started, Benchmarks):
        return started
    import ray

    with errors_as_raised():
        return ray.get(started)


def read(recipe: Recipe) -> Benchmarks:
    """Return the benchmarks of a recipe."""
    return Benchmarks(_iter_items(recipe))


def _iter_items(recipe: Recipe) -> Iterator[tuple[str, str]]:
    from bezoar_ray.sources.harness_items import task_texts
    from bezoar_ray.sources.mt_bench_files import load_questions

    if recipe.evaluate.mt_bench:
        for question in load_questions(recipe.evaluate.mt_bench):
            for turn in question.turns:
                yield "mt_bench", turn
    if recipe.evaluate.harness:
        if recipe.evaluate.harness.include_path == "tiny":
            os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        yield from task_texts(recipe.evaluate.harness)


def _split_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _ngrams(words: list[str], length: int) -> Iterator[Ngram]:
    """Yield each n-gram of `length` words."""
    for start in range(len(words) - length + 1):
        text = " ".join(words[start : start + length])
        yield length, xxhash.xxh3_64_intdigest(text.encode())
