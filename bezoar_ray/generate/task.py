"""The unit of work of a scheme, and the steps that all schemes share."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from bezoar_ray.data.row import StageRow
from bezoar_ray.data.schema import Sample, Seed, row_id
from bezoar_ray.llm.chat import CallFailed, Messages, Reply


@dataclass(frozen=True)
class GenerationTask(StageRow):
    """One unit of work of a scheme: one chain of model calls, started from a few seeds.

    Its `id` is the row id of its calls in the ledger. All random draws of the chain are
    seeded with it, so that a rerun repeats them.
    """

    id: str
    scheme: str
    recipe_seed: int
    seeds: list[Seed]
    draw: dict[str, Any] = field(default_factory=dict)
    """What the scheme's `plan` drew for this task, such as topics."""

    def sample(
        self,
        operation: str,
        *,
        round: int = 0,
        call: int = 0,
        slot: int = 0,
        **values: Any,
    ) -> Sample:
        """Make an empty row with its id and the provenance of its seeds.

        The id depends on the seeds, the operation, `round`, `call` and `slot`, and not
        on any text. Rows of one task must differ in at least one of them.
        """
        seed_ids = [seed.id for seed in self.seeds]
        id = row_id(
            self.recipe_seed, self.scheme, *seed_ids, operation, round, call, slot
        )
        return Sample(
            id=id,
            scheme=self.scheme,
            operation=operation,
            round=round,
            seed_ids=seed_ids,
            seed_sources=[seed.source for seed in self.seeds],
            seed_licenses=[seed.license for seed in self.seeds],
            **values,
        )

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "GenerationTask":
        """Build the task from its fields."""
        seeds = [Seed(**seed) for seed in row["seeds"]]
        return cls(**row | {"seeds": seeds})


def one_task_per_seed(
    scheme: str,
    recipe_seed: int,
    seeds: Sequence[Seed],
    count: int,
) -> Iterator[GenerationTask]:
    """Draw `count` seeds, or all where there are fewer, and yield one task for each."""
    # Seeded by the scheme: another scheme of the recipe changes nothing in its draws.
    rng = random.Random(row_id(recipe_seed, scheme))
    for index in rng.sample(range(len(seeds)), min(count, len(seeds))):
        seed = seeds[index]
        task_id = row_id(recipe_seed, scheme, seed.id)
        yield GenerationTask(task_id, scheme, recipe_seed, [seed])


def fill_answer(sample: Sample, messages: Messages, reply: Reply) -> Sample:
    """Return the sample with the response and the fields that describe its call."""
    return replace(
        sample,
        response=reply.text.strip(),
        finish_reason=reply.finish_reason,
        tokens_in=reply.tokens_in,
        tokens_out=reply.tokens_out,
        prompt_hash=prompt_hash(messages),
    )


def fail_call(sample: Sample, error: CallFailed) -> Sample:
    """Return the sample as failed, since a call that it needs failed for good."""
    return sample.ended("failed", f"call: {error}")


def prompt_hash(messages: Messages) -> str:
    """Return the hash that tells prompts apart, 16 hexadecimal digits."""
    return hashlib.sha256(orjson.dumps(messages)).hexdigest()[:16]
