"""The generate stage: seeds in, samples out in the order of their ids.

One Ray Data graph works on the tasks of all schemes.
"""

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

from bezoar_ray import sources
from bezoar_ray.data.sample_io import ExternalSorter, SampleFiles
from bezoar_ray.data.schema import Sample, Seed, normalize, row_id
from bezoar_ray.data.spool import Spool, SpoolWriter
from bezoar_ray.errors import RecipeError
from bezoar_ray.generate.candidates import RecordingChat
from bezoar_ray.generate.task import GenerationTask
from bezoar_ray.llm.chat import Chat
from bezoar_ray.pipeline.actor_pool import ModelStage, run_context
from bezoar_ray.pipeline.runner import run_pipeline
from bezoar_ray.recipe import Recipe, Teacher
from bezoar_ray.runtime.logs import event
from bezoar_ray.schemes import Scheme
from bezoar_ray.sources.seed_table import write_seeds
from bezoar_ray.stages import StageContext, StageResult

_FAILED_SEEDS = "seeds-failed.txt"  # a log

TeacherStage = ModelStage[GenerationTask, Sample]


@dataclass(frozen=True)
class PlannedTasks:
    """The tasks of all schemes, on disk."""

    inputs: list[tuple[Spool[GenerationTask], TeacherStage]]
    """The tasks of each teacher."""
    rows: int
    """The rows that all tasks will give."""
    counts: dict[str, dict[str, int]]
    """Seeds of each scheme, for `data` of summary.json."""


def run(context: StageContext) -> StageResult:
    """Generate the rows of `data/<scheme>/generated`."""
    with context.store.scratch() as scratch:
        planned = plan_tasks(context, scratch)
        samples = run_pipeline(planned.inputs, [], run_context(context), scratch)
        with ExternalSorter(planned.rows) as sorter:
            sorter.fill(samples, context.progress)
            return write_generated(sorter, planned, context)


def write_generated(
    sorter: ExternalSorter, planned: PlannedTasks, context: StageContext
) -> StageResult:
    """Write the files of all generated rows, and return them with their counts."""
    files = SampleFiles(context.store, context.recipe.schemes, ["generated"])
    generated = Counter[str]()
    missing = Counter[str]()
    examples: dict[str, str] = {}
    for samples in sorter:
        # Where generate and filter run as one, the rows already have verdicts.
        samples = [replace(sample, verdicts=[]) for sample in samples]
        for sample in samples:
            generated[sample.scheme] += 1
            if sample.status == "failed" and sample.reason == "missing":
                missing[sample.scheme] += 1
                if sample.response:
                    examples.setdefault(sample.scheme, sample.response)
        files.write(samples, "generated")
    for scheme in generated:
        if missing[scheme] > generated[scheme] / 2:
            reply = examples.get(scheme, "")
            warning = _missing_warning(
                scheme, missing[scheme], generated[scheme], reply
            )
            context.progress.say(warning)
    counts = {
        scheme: counts | {"generated": generated[scheme]}
        for scheme, counts in planned.counts.items()
    }
    return StageResult(files.names, {"data": counts})


def _missing_warning(scheme: str, missing: int, generated: int, reply: str) -> str:
    warning = (
        f"warning: {missing} of {generated} rows of {scheme} are missing: "
        "the teacher's replies hold fewer rows than requested"
    )
    if not reply:
        return warning
    one_line = " ".join(reply.split())
    return f"{warning}. A reply without any row begins: {one_line}"


def plan_tasks(context: StageContext, scratch: str) -> PlannedTasks:
    """Read the seeds and write the tasks to disk.

    Seeds and tasks are on disk, so that neither is ever in memory as a whole.
    """
    recipe = context.recipe
    writers = [
        SpoolWriter(f"{scratch}/tasks-{number}.arrow", GenerationTask)
        for number in range(len(recipe.teachers))
    ]
    rows = 0
    # Ids as integers, which take less memory than text.
    seeds_used: dict[str, set[int]] = {scheme: set() for scheme in recipe.schemes}
    failed_seeds = _FailedSeeds(context)
    # Seeds stay on the driver's disk; tasks are in `scratch`, which all nodes see.
    with tempfile.TemporaryDirectory(prefix="bezoar_ray-") as folder:
        seeds: dict[str, Sequence[Seed]] = {}
        for kind in recipe.seeds_in_use:
            seed_sources = getattr(recipe.seeds, kind)
            report_failure = partial(failed_seeds.add, kind)
            stream = sources.stream(seed_sources, kind, report_failure)
            seeds[kind] = write_seeds(stream, Path(folder, f"{kind}.arrow"))
        failed_seeds.report()
        for task in plan(recipe, seeds):
            rows += rows_per_task(recipe, task.scheme)
            seeds_used[task.scheme].update(int(seed.id, 16) for seed in task.seeds)
            writers[_teacher_index(task, recipe.teachers)].add(task)
    inputs = [
        (writer.close(), _teacher_stage(recipe, teacher))
        for writer, teacher in zip(writers, recipe.teachers, strict=True)
    ]
    counts = {}
    for scheme in recipe.schemes:
        counts[scheme] = {
            "seeds": len(seeds_used[scheme]),
            "seeds_failed": failed_seeds.counts[recipe.scheme(scheme).seeds],
        }
    return PlannedTasks(inputs, rows, counts)


def plan(
    recipe: Recipe, seeds: Mapping[str, Sequence[Seed]]
) -> Iterator[GenerationTask]:
    """Yield the tasks of all schemes: the same for the same recipe seed and seed rows.

    Args:
        recipe: The recipe.
        seeds: The seeds of each kind.

    Raises:
        RecipeError: A scheme has no seed to start from.
    """
    for name in recipe.schemes:
        scheme = recipe.scheme(name)
        seeds_of_kind = seeds[scheme.seeds]
        if not seeds_of_kind:
            raise RecipeError(
                f"generate.{name} starts from seeds.{scheme.seeds}, which holds no "
                f"usable row. Add a source, or leave the scheme out with "
                f"generate.{name}: null"
            )
        section = recipe.generate.section(name)
        yield from _module(scheme).plan(name, section, recipe.seed, seeds_of_kind)


def _module(scheme: Scheme) -> ModuleType:
    return importlib.import_module(scheme.module)


def rows_per_task(recipe: Recipe, scheme: str) -> int:
    """Return the number of rows that one task of a scheme gives, with candidates."""
    return recipe.rows_per_task(scheme) * recipe.generate.candidates


class _FailedSeeds:
    """Malformed seed rows: counted by kind, listed in a log, and reported once."""

    def __init__(self, context: StageContext):
        self._progress = context.progress
        self.counts: Counter[str] = Counter()
        self._first_message = ""
        self._log = context.store.log(_FAILED_SEEDS)
        # An earlier attempt has listed the same rows.
        self._log.unlink(missing_ok=True)

    def add(self, kind: str, message: str) -> None:
        """Count one malformed row of a kind of seeds."""
        self.counts[kind] += 1
        self._first_message = self._first_message or message
        with open(self._log, "a") as log:
            log.write(message + "\n")

    def report(self) -> None:
        """Print how many there were."""
        if self._first_message:
            self._progress.say(
                f"{self.counts.total()} malformed seed rows are left out: "
                f"see {self._log}; first: {self._first_message}"
            )


def _teacher_index(task: GenerationTask, teachers: Sequence[Teacher]) -> int:
    """Return the index of a task's teacher: drawn by weight, the same in every run."""
    rng = random.Random(row_id(task.id, "teacher"))
    weights = [teacher.weight for teacher in teachers]
    return rng.choices(range(len(teachers)), weights)[0]


def _teacher_stage(recipe: Recipe, teacher: Teacher) -> TeacherStage:
    sections: dict[str, object] = {
        name: recipe.generate.section(name).for_actors() for name in recipe.schemes
    }
    process = partial(
        _generate,
        teacher=teacher,
        schemes={name: recipe.scheme(name) for name in recipe.schemes},
        sections=sections,
        candidates=recipe.generate.candidates,
    )
    return ModelStage(process, teacher, "teacher", GenerationTask, Sample)


async def _generate(
    task: GenerationTask,
    chat: Chat,
    *,
    teacher: Teacher,
    schemes: dict[str, Scheme],
    sections: dict[str, object],
    candidates: int,
) -> AsyncIterator[Sample]:
    """Yield the rows of one task, and the further candidates of each row.

    An instruction that repeats a seed, or an earlier instruction of the task, is
    rejected here, so that no judge is paid for it.
    """
    scheme = schemes[task.scheme]
    known = set()
    if not scheme.keeps_instruction:
        known = {normalize(seed.task) for seed in task.seeds}
    recorder = RecordingChat(chat)
    samples = _module(scheme).run(task, recorder, sections[task.scheme])
    async for sample in samples:
        instruction = normalize(sample.task)
        if sample.status == "generated" and instruction in known:
            sample = sample.ended("rejected", "duplicate")
        known.add(instruction)
        if sample.status == "failed":
            event(
                "row failed",
                logging.WARNING,
                row=sample.id,
                scheme=sample.scheme,
                why=sample.reason,
            )
        for row in [sample, *await recorder.extra_candidates(sample, candidates)]:
            yield replace(row, teacher=teacher.model, teacher_license=teacher.license)
