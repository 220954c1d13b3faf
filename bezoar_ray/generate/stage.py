"""The generate stage: seeds in, one Ray Data graph over the works of all schemes, samples out in the order of ids."""

import importlib
import logging
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import orjson

from bezoar_ray import sources
from bezoar_ray.data.sample_io import ExternalSorter, SampleFiles
from bezoar_ray.data.schema import Sample, Seed, normal, row_id
from bezoar_ray.data.spool import ItemWriter, Spool
from bezoar_ray.errors import RecipeError
from bezoar_ray.generate import custom_scheme
from bezoar_ray.generate.candidates import Remembering
from bezoar_ray.generate.task import GenerationTask, one_for_each
from bezoar_ray.pipeline.actor_pool import ModelStage, run_context
from bezoar_ray.pipeline.runner import run_pipeline
from bezoar_ray.recipe import Recipe, Teacher
from bezoar_ray.runtime.logs import event
from bezoar_ray.schemes import SCHEMES, Scheme
from bezoar_ray.sources.seed_table import write_seeds
from bezoar_ray.stages import StageContext, StageResult

if TYPE_CHECKING:
    from bezoar_ray.llm.client import ModelClient

    pass

_FAILED_SEEDS = "seeds-failed.txt"  # a log


@dataclass(frozen=True)
class Planned:
    """All works, on disk, with the teacher that does them; the rows that they will give; and `data` of summary.json."""

    heads: list[tuple[Spool, ModelStage]]
    rows: int
    counts: dict[str, dict[str, int]]


def run(context: StageContext) -> StageResult:
    """Make the rows that `data/<scheme>/generated` holds."""
    with context.store.scratch() as scratch:
        planned = prepare(context, scratch)
        rows = run_pipeline(planned.heads, [], run_context(context), scratch)
        with ExternalSorter(planned.rows) as spill:
            spill.fill(rows, context.progress)
            return written(spill, planned, context)


def written(
    spill: ExternalSorter, planned: Planned, context: StageContext
) -> StageResult:
    """The files of rows that have all come, and their counts."""
    files, made = (
        SampleFiles(context.store, context.recipe.schemes, ["generated"]),
        Counter[str](),
    )
    missing, shown = Counter[str](), dict[str, str]()
    for rows in spill:
        samples = [replace(Sample.from_row(row), verdicts=[]) for row in rows]
        made.update(sample.scheme for sample in samples)
        for sample in samples:
            if (sample.status, sample.reason) == ("failed", "missing"):
                missing[sample.scheme] += 1
                shown[sample.scheme] = shown.get(sample.scheme) or sample.response
        files.write(samples, "generated")
    for scheme in made:
        if missing[scheme] > made[scheme] / 2:
            begins = " ".join(shown[scheme].split())
            example = f". One that holds none begins: {begins}" if begins else ""
            context.progress.say(
                f"warning: {missing[scheme]} of {made[scheme]} rows of {scheme} are missing: the teacher's replies "
                f"hold fewer than were asked for{example}"
            )
    counts = {
        scheme: counts | {"generated": made[scheme]}
        for scheme, counts in planned.counts.items()
    }
    return StageResult(files.names, {"data": counts})


def prepare(context: StageContext, scratch: str) -> Planned:
    """Read the seeds, and write down the works: neither is ever in memory as a whole."""
    recipe, failed = context.recipe, _FailedSeeds(context)
    rows, used = 0, {scheme: set[int]() for scheme in recipe.schemes}
    writers = [
        ItemWriter(f"{scratch}/works-{n}.arrow") for n in range(len(recipe.teachers))
    ]
    with tempfile.TemporaryDirectory(prefix="bezoar_ray-") as folder:
        seeds: dict[str, Sequence[Seed]] = {
            kind: write_seeds(
                sources.stream(
                    getattr(recipe.seeds, kind), kind, partial(failed.add, kind)
                ),
                Path(folder, f"{kind}.arrow"),
            )
            for kind in recipe.seeds_in_use
        }
        failed.tell()
        for work in plan(recipe, seeds):
            rows += expected(recipe, work.scheme)
            used[work.scheme].update(int(seed.id, 16) for seed in work.seeds)
            writers[_whose(work, recipe.teachers)].add(work.to_json())
    heads = [
        (writer.close(), _teaching(recipe, part))
        for writer, part in zip(writers, recipe.teachers, strict=True)
    ]
    counts = {
        scheme: {
            "seeds": len(used[scheme]),
            "seeds_failed": failed.counts[recipe.scheme(scheme).seeds],
        }
        for scheme in recipe.schemes
    }
    return Planned(heads, rows, counts)


def plan(
    recipe: Recipe, seeds: Mapping[str, Sequence[Seed]]
) -> Iterator[GenerationTask]:
    """The works of all schemes from the seeds of each kind; the same for the same recipe seed and rows.

    Raises:
        RecipeError: a scheme has no seed to start from.
    """
    for name in recipe.schemes:
        scheme = recipe.scheme(name)
        if not seeds[scheme.seeds]:
            raise RecipeError(
                f"generate.{name} starts from seeds.{scheme.seeds}, which holds no usable row. "
                f"Add a source, or leave the scheme out with generate.{name}: null"
            )
        section = recipe.generate.section(name)
        if name in SCHEMES:
            yield from _module(scheme).plan(section, recipe.seed, seeds[scheme.seeds])
        else:
            yield from one_for_each(
                name, recipe.seed, seeds[scheme.seeds], section.works
            )


def _module(scheme: Scheme) -> ModuleType:
    return importlib.import_module(scheme.module)


def expected(recipe: Recipe, scheme: str) -> int:
    """How many rows one task of a scheme gives."""
    return recipe.rows_per_task(scheme) * recipe.generate.candidates


class _FailedSeeds:
    """Malformed seed rows: counted by kind, listed in a log, and said once."""

    def __init__(self, context: StageContext):
        self._context = context
        self.counts: Counter[str] = Counter()
        self._first, self._log = "", context.store.log(_FAILED_SEEDS)
        self._log.unlink(missing_ok=True)

    def add(self, kind: str, message: str) -> None:
        """One more."""
        self._first = self._first or message
        self.counts[kind] += 1
        with open(self._log, "a") as log:
            log.write(message + "\n")

    def tell(self) -> None:
        """Say how many there were."""
        if self._first:
            self._context.progress.say(
                f"{self.counts.total()} malformed seed rows are left out: see {self._log}; first: {self._first}"
            )


def _whose(work: GenerationTask, teachers: Sequence[Teacher]) -> int:
    """The place of the teacher who does a work: drawn by weight, the same in every run."""
    weights = [teacher.weight for teacher in teachers]
    return random.Random(row_id(work.id, "teacher")).choices(
        range(len(teachers)), weights
    )[0]


def _teaching(recipe: Recipe, teacher: Teacher) -> ModelStage:
    parts: dict[str, object] = {
        name: recipe.generate.section(name) for name in recipe.schemes
    }
    for name, part in recipe.generate.own.items():
        parts[name] = custom_scheme.Code(part.source, part.function, part.settings)
    schemes = {name: recipe.scheme(name) for name in recipe.schemes}
    return ModelStage(
        partial(_answer, schemes, parts, recipe.generate.candidates, teacher),
        teacher,
        "teacher",
    )


async def _answer(
    schemes: dict[str, Scheme],
    parts: dict[str, object],
    candidates: int,
    teacher: Teacher,
    item: bytes,
    talker: "ModelClient",
) -> AsyncIterator[bytes]:
    """The rows of one work, in an actor. One that asks what its chain has asked before is not worth a judge."""
    work = GenerationTask.from_json(item)
    scheme = schemes[work.scheme]
    known = (
        set()
        if scheme.keeps_instruction
        else {normal(seed.task) for seed in work.seeds}
    )
    chat = Remembering(talker.for_row(work.id))
    async for sample in _module(scheme).run(work, chat, parts[work.scheme]):
        asks = normal(sample.task)
        if sample.status == "generated" and asks in known:
            sample = sample.ended("rejected", "duplicate")
        known.add(asks)
        if sample.status == "failed":
            event(
                "row failed",
                logging.WARNING,
                row=sample.id,
                scheme=sample.scheme,
                why=sample.reason,
            )
        for row in [sample, *await chat.others(sample, candidates)]:
            yield orjson.dumps(
                replace(
                    row, teacher=teacher.model, teacher_license=teacher.license
                ).to_row()
            )
