"""What a scheme works on: a few seeds and what was drawn for them. One unit of work, one chain of model calls."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from bezoar_ray.data.row import StageRow
from bezoar_ray.data.schema import Sample, Seed, row_id
from bezoar_ray.llm.chat import Messages, Reply


@dataclass(frozen=True)
class GenerationTask(StageRow):
    """One unit of a scheme. Its id is the ledger's row id; all draws inside it come from that id."""

    id: str
    scheme: str
    recipe_seed: int
    seeds: list[Seed]
    draw: dict[str, Any] = field(default_factory=dict)

    def sample(
        self,
        operation: str,
        *,
        round: int = 0,
        call: int = 0,
        slot: int = 0,
        **values: Any,
    ) -> Sample:
        """The row of one slot, with its id and the provenance of its seeds."""
        seed_ids = [seed.id for seed in self.seeds]
        return Sample(
            id=row_id(
                self.recipe_seed, self.scheme, *seed_ids, operation, round, call, slot
            ),
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


def one_for_each(
    scheme: str, recipe_seed: int, seeds: Sequence[Seed], count: int
) -> Iterator[GenerationTask]:
    """One work for each drawn seed; all of the seeds where there are fewer than are asked for."""
    rng = random.Random(row_id(recipe_seed, scheme))
    for place in rng.sample(range(len(seeds)), min(count, len(seeds))):
        seed = seeds[place]
        yield GenerationTask(
            row_id(recipe_seed, scheme, seed.id), scheme, recipe_seed, [seed]
        )


def answered(messages: Messages, reply: Reply) -> dict[str, Any]:
    """The fields of a sample that come from the call that wrote its response."""
    return {
        "response": reply.text.strip(),
        "finish_reason": reply.finish_reason,
        "tokens_in": reply.tokens_in,
        "tokens_out": reply.tokens_out,
        "prompt_hash": prompt_hash(messages),
    }


def prompt_hash(messages: Messages) -> str:
    """What tells prompts apart."""
    return hashlib.sha256(orjson.dumps(messages)).hexdigest()[:16]


def call_failed(error: Exception) -> tuple[str, str]:
    """Status and reason of a row whose call failed for good."""
    return "failed", f"call: {error}"
