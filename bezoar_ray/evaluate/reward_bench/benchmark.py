"""RewardBench: the reward model, and beside it the checkpoints' implicit rewards.

A checkpoint's implicit reward of an answer (arXiv 2305.18290, eq. 5, without beta) is
the log-probability that it gives the answer, minus that of the checkpoint from which
its training started. The base has none.

Files keep what the models say of each answer, not the scores that follow from it. So
other weights of the attributes need no model.
"""

import asyncio
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import orjson

from bezoar_ray import layout
from bezoar_ray.evaluate.reward_bench.items import BenchItem, Version, load_items
from bezoar_ray.evaluate.reward_bench.likelihood import answer_log_probabilities
from bezoar_ray.evaluate.reward_bench.protocol import ScoredItem, Summary, summarize
from bezoar_ray.evaluate.reward_bench.scorer import rate, weighted_scores
from bezoar_ray.evaluate.reward_bench.tokenized_items import TokenizedAnswer, tokenize
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.llm.aio import to_the_end
from bezoar_ray.recipe import Recipe, RewardBench, Rm
from bezoar_ray.stages import BASE, REWARD_MODEL, checkpoint_of
from bezoar_ray.store import Store

Values = list[Any]
"""What a model says of an item, by answer: a log-probability or five ratings. None in
place of a list of answers if one of them does not fit in the context."""


@dataclass(frozen=True)
class RewardBenchmark:
    """The items, and the models that rank their answers.

    Models are given with their identities, for each of which a result is valid.
    """

    section: RewardBench
    store: Store
    checkpoints: dict[str, str]
    """The checkpoints that are served, by name."""
    reward_model: str | None
    """The identity of the reward model, if the run has one."""

    @cached_property
    def items(self) -> dict[Version, list[BenchItem]]:
        """The items of the versions that the recipe names.

        Raises:
            RecipeError: a file cannot be read, or a row of it is malformed.
        """
        return {
            version: load_items(source, version, self.section.limit)
            for version, source in self.section.sources.items()
        }

    @property
    def identities(self) -> dict[str, str]:
        """The identities of all models."""
        if self.reward_model is None:
            return self.checkpoints
        return {**self.checkpoints, REWARD_MODEL: self.reward_model}

    @property
    def passes(self) -> int:
        """How often a model goes through the items of a version."""
        return len(self.identities) * len(self.items)

    @property
    def files(self) -> list[str]:
        """The files with what the models say."""
        return [layout.reward_bench(name) for name in self.identities]

    @property
    def is_endpoint_needed(self) -> bool:
        """Whether a checkpoint's log-probabilities are not known yet."""
        return any(next(self.unknown(name), None) for name in self.checkpoints)

    @cached_property
    def tokens(self) -> dict[Version, list[list[TokenizedAnswer]]]:
        """The answers of all items as tokens."""
        from transformers import AutoTokenizer

        folder = self.store.path(layout.checkpoint(BASE).folder)
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        return {
            version: tokenize(items, tokenizer) for version, items in self.items.items()
        }

    def unknown(self, name: str) -> Iterator[Version]:
        """Yield the versions for which a model's values are not known."""
        for version in self.items:
            if self.values(name, version) is None:
                yield version

    def values(self, name: str, version: Version) -> Values | None:
        """Return what a model says of the items of a version; None if it is unknown."""
        saved = self.store.read_json(layout.reward_bench(name)) or {}
        entry = saved.get(version)
        if not entry or entry["key"] != self._key(name, version):
            return None
        values: Values = entry["values"]
        return values

    def save(self, name: str, version: Version, flat_values: Sequence[Any]) -> None:
        """Save what a model says of the items of a version.

        Args:
            name: of the model.
            version: of the benchmark.
            flat_values: one value for each answer of each item in turn; None for an
                answer that does not fit in the context.
        """
        values: Values = []
        remaining = iter(flat_values)
        for item in self.items[version]:
            of_item = [next(remaining) for _ in item.answers]
            values.append(None if None in of_item else of_item)
        file = layout.reward_bench(name)
        saved = self.store.read_json(file) or {"model": name}
        saved[version] = {"key": self._key(name, version), "values": values}
        self.store.replace_json(file, saved)

    def _key(self, name: str, version: Version) -> str:
        """Digest everything that could change a model's values."""
        inputs = [self.identities[name], self._item_digests[version]]
        return hashlib.sha256(orjson.dumps(inputs)).hexdigest()[:16]

    @cached_property
    def _item_digests(self) -> dict[Version, str]:
        digests = {}
        for version, items in self.items.items():
            data = orjson.dumps([asdict(item) for item in items])
            digests[version] = hashlib.sha256(data).hexdigest()
        return digests


def rate_answers(
    recipe: Recipe, benchmark: RewardBenchmark, step: Callable[[], None]
) -> None:
    """Let the reward model rate all answers, unless its ratings are known.

    Run it while the endpoint does not: the two may need the same GPU.

    Args:
        recipe: the run's recipe.
        benchmark: the items, and where the ratings are kept.
        step: called after each version.
    """
    if benchmark.reward_model is None:
        return
    unknown = list(benchmark.unknown(REWARD_MODEL))
    conversations = []
    counts = []
    for version in unknown:
        answers = [answer for item in benchmark.tokens[version] for answer in item]
        conversations += [answer.ids for answer in answers]
        counts.append(len(answers))
    if conversations:
        # One engine rates both versions: its start takes longer than a small file.
        ratings = iter(rate(recipe, benchmark.store, conversations).tolist())
        for version, count in zip(unknown, counts, strict=True):
            flat_ratings = [
                None if math.isnan(rating[0]) else rating
                for rating in islice(ratings, count)
            ]
            benchmark.save(REWARD_MODEL, version, flat_ratings)
    for _ in benchmark.items:
        step()


async def reward_bench(
    recipe: Recipe,
    benchmark: RewardBenchmark,
    endpoint: Endpoint | None,
    step: Callable[[], None],
) -> tuple[Summary, list[str]]:
    """Ask the checkpoints for the likelihood of all answers, and score all models.

    Args:
        recipe: the run's recipe.
        benchmark: the items and models. The reward model has rated the answers.
        endpoint: where the checkpoints are served; None if all likelihoods are known.
        step: called after each checkpoint and version.

    Returns:
        `eval.reward_bench` of summary.json, and the files written.
    """
    if benchmark.is_endpoint_needed:
        # Off the event loop, which serves the other benchmarks.
        await asyncio.to_thread(lambda: benchmark.tokens)

    async def ask(name: str, version: Version) -> None:
        if benchmark.values(name, version) is None:
            assert endpoint
            answers = [answer for item in benchmark.tokens[version] for answer in item]
            sums = await answer_log_probabilities(endpoint, name, answers)
            benchmark.save(name, version, sums)
        step()

    await to_the_end(
        ask(name, version)
        for name in benchmark.checkpoints
        for version in benchmark.items
    )
    return summarize_models(recipe, benchmark), benchmark.files


def summarize_models(recipe: Recipe, benchmark: RewardBenchmark) -> Summary:
    """Summarize all models from what they say of the answers.

    Returns:
        `one` and `two` of the reward model, its `weights`, and `implicit`: the same of
        each checkpoint whose reference was asked, too.
    """
    summary: Summary = {}
    if benchmark.reward_model is not None and recipe.rm:
        summary["weights"] = dict(recipe.rm.weights)
        for version in benchmark.items:
            scores = _reward_scores(benchmark, version, recipe.rm)
            summary[version] = _summarize(benchmark, version, scores)
    implicit = {}
    for name in benchmark.checkpoints:
        reference = None if name == BASE else checkpoint_of(name).parent
        if reference not in benchmark.checkpoints:
            continue
        by_version = {}
        for version in benchmark.items:
            scores = _implicit_rewards(benchmark, version, name, reference)
            by_version[version] = _summarize(benchmark, version, scores)
        implicit[name] = by_version
    if implicit:
        summary["implicit"] = implicit
    return summary


def _reward_scores(
    benchmark: RewardBenchmark, version: Version, section: Rm
) -> Iterator[list[float] | None]:
    """Yield the reward model's scores of each item's answers."""
    for ratings in _known_values(benchmark, REWARD_MODEL, version):
        if ratings is None:
            yield None
        else:
            yield weighted_scores(ratings, section.weights).tolist()


def _implicit_rewards(
    benchmark: RewardBenchmark, version: Version, name: str, reference: str
) -> Iterator[list[float] | None]:
    """Yield the implicit rewards that a checkpoint gives each item's answers."""
    values = _known_values(benchmark, name, version)
    reference_values = _known_values(benchmark, reference, version)
    for sums, reference_sums in zip(values, reference_values, strict=True):
        if sums is None or reference_sums is None:
            yield None
        else:
            yield [own - other for own, other in zip(sums, reference_sums, strict=True)]


def _known_values(benchmark: RewardBenchmark, name: str, version: Version) -> Values:
    values = benchmark.values(name, version)
    assert values is not None  # all models were asked
    return values


def _summarize(
    benchmark: RewardBenchmark,
    version: Version,
    scores: Iterable[list[float] | None],
) -> Summary:
    """Summarize one model's scores. Items without scores are counted as left out."""
    scored = []
    left_out = 0
    for item, of_item in zip(benchmark.items[version], scores, strict=True):
        if of_item is None:
            left_out += 1
        else:
            scored.append(ScoredItem(item, of_item))
    return summarize(version, scored, left_out)
