"""The steps of a recipe: calls of one kind to one model, or the training of one stage."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bezoar_ray.licenses import commercial_use
from bezoar_ray.plan import training_hours
from bezoar_ray.plan.assumed import Assumed
from bezoar_ray.plan.memory import MemoryNeed, engine_need
from bezoar_ray.plan.training_hours import TrainingWork
from bezoar_ray.recipe import ModelSection, MtBench, Recipe, Serve
from bezoar_ray.recipe.section import SchedulingSection, gpus_of, matches
from bezoar_ray.runtime.gpus import GPUS, USUAL, Gpu, known_gpu
from bezoar_ray.runtime.model_shapes import billions_in, model_shape
from bezoar_ray.stages import STAGES


@dataclass(frozen=True)
class Step:
    """One line of a plan: calls of one kind to one model, or the training of one stage."""

    stage: str
    what: str
    model: str
    calls: float = 0
    tokens_in: float = 0
    tokens_out: float = 0
    usd: float = 0
    gpu_hours: float = 0
    usd_most: float = 0
    """Dollars if every answer is as long as `max_tokens` lets it be."""


@dataclass(frozen=True)
class Plan:
    """All steps of a recipe, and what was assumed on the way."""

    recipe: str
    steps: tuple[Step, ...]
    rows: dict[str, float]
    """Rows that each scheme generates, at most."""
    assumed: Assumed
    code: tuple[str, ...] = ()
    """Code of others that the recipe runs."""
    budget: float | None = None
    """Dollars."""
    needs: tuple[MemoryNeed, ...] = ()
    """Of each stage that uses GPUs: the memory of one."""
    unknown_gpus: tuple[str, ...] = ()
    """Kinds of GPU that the recipe names and `GPUS` does not hold."""
    commercial_use: tuple[str, tuple[str, ...]] = ("", ())
    """The verdict and its causes."""

    def total(self, name: str) -> float:
        """The sum of one column."""
        return sum(getattr(step, name) for step in self.steps)


def plan(
    recipe: Recipe, assumed: Assumed | None = None, gpu: Gpu | None = None
) -> Plan:
    """What a recipe will call, cost and take of its GPUs.

    Args:
        recipe: what is planned.
        assumed: numbers that the recipe does not say.
        gpu: the kind of all GPUs; where empty, each stage has the one that the recipe names.
    """
    assumed = assumed or Assumed()
    rows = generated(recipe, assumed)
    works = tuple(training_hours.works(recipe, rows, assumed))
    use = commercial_use(recipe)
    return Plan(
        recipe=recipe.name,
        steps=(
            *generation(recipe, rows, assumed, gpu),
            *_judging(recipe, rows, assumed, gpu),
            *_training(recipe, works, gpu),
            *_evaluation(recipe, assumed, gpu),
            *(
                Step(stage.name, stage.label, "")
                for stage in STAGES.values()
                if not stage.scheduled
            ),
        ),
        rows=rows,
        assumed=assumed,
        code=tuple(_code(recipe)),
        budget=recipe.budget_usd,
        needs=tuple(_needs(recipe, works, gpu)),
        unknown_gpus=()
        if gpu
        else tuple(sorted(kind for kind in _named(recipe) if not known_gpu(kind))),
        commercial_use=(use["verdict"], tuple(use["because"])),
    )


def gpu_of(recipe: Recipe, part: SchedulingSection, given: Gpu | None = None) -> Gpu:
    """The kind of GPU of a section: the one given, its own, the one kind that the recipe names, or an H100."""
    named = {known.kind: known for kind in _named(recipe) if (known := known_gpu(kind))}
    usual = next(iter(named.values())) if len(named) == 1 else GPUS[USUAL]
    if given or not part.accelerator_type:
        return given or usual
    return known_gpu(part.accelerator_type) or GPUS[USUAL]


def _named(recipe: Recipe) -> set[str]:
    """The kinds of GPU that a recipe's sections ask for."""
    sections = [
        recipe.sft,
        recipe.hh_sft,
        recipe.align,
        recipe.serve,
        *recipe.teachers,
        *recipe.judges,
    ]
    return {
        section.accelerator_type for section in sections if section.accelerator_type
    }


def _needs(
    recipe: Recipe, works: Iterable[TrainingWork], gpu: Gpu | None
) -> Iterator[MemoryNeed]:
    """Of every stage that uses a GPU."""
    talked_to: list[tuple[str, ModelSection]] = [
        ("generate", teacher) for teacher in recipe.teachers
    ]
    talked_to += [
        ("filter", judge) for judge in (recipe.judges if recipe.filter.judge else ())
    ]
    for stage, part in talked_to:
        if gpus_of(part.engine, part.num_gpus) and not part.base_url:
            yield engine_need(stage, part.model, part, gpu_of(recipe, part, gpu))
    for work in works:
        training = recipe.training(work.stage)
        if training.gpus_per_worker:
            yield training_hours.need(recipe, work, gpu_of(recipe, training, gpu))
    if gpus_of(recipe.serve.engine, recipe.serve.num_gpus) and (
        recipe.evaluate.harness or recipe.evaluate.mt_bench
    ):
        yield engine_need(
            "evaluate",
            recipe.base.model,
            recipe.serve,
            gpu_of(recipe, recipe.serve, gpu),
        )


def _code(recipe: Recipe) -> Iterator[str]:
    """The code that a recipe runs, besides ours."""
    yield from (
        f"{part.function} (generate.own.{name})"
        for name, part in recipe.generate.own.items()
    )
    models = [("teacher", part) for part in recipe.teachers] + [
        ("judge", part) for part in recipe.judges
    ]
    for role, part in [*models, ("base", recipe.base)]:
        if part.trust_remote_code:
            yield f"code of {part.model} at {part.revision} ({role}: trust_remote_code)"
        if part.pickled_weights:
            yield f"pickled weights of {part.model} ({role}: pickled_weights), which can hold code"
    harness = recipe.evaluate.harness
    if harness and harness.include_path not in (None, "tiny"):
        yield f"functions that the tasks in {harness.include_path} name (evaluate.harness.include_path)"


# Generation and filter.


def generated(recipe: Recipe, assumed: Assumed) -> dict[str, float]:
    """Rows that each scheme of the recipe generates, at most."""
    found, part = {}, recipe.generate
    if part.lamini:
        found["lamini"] = float(part.lamini.calls * part.lamini.per_call)
    if part.evol_instruct:
        seeds = min(
            part.evol_instruct.seeds,
            training_hours.limit_of(recipe.seeds.dolly) or part.evol_instruct.seeds,
        )
        found["evol_instruct"] = float(seeds * part.evol_instruct.epochs)
    if part.orca:
        drawn = sum(
            mixture.rows or assumed.open_rows for mixture in part.orca.mixtures.values()
        )
        found["orca"] = float(
            min(
                drawn,
                training_hours.limit_of(recipe.seeds.flan) or drawn,
                part.orca.rows or drawn,
            )
        )
    for name, own in part.own.items():
        works = min(
            own.works,
            training_hours.limit_of(getattr(recipe.seeds, own.seeds)) or own.works,
        )
        found[name] = float(works * own.rows_per_work)
    return found


def generation(
    recipe: Recipe, rows: dict[str, float], assumed: Assumed, gpu: Gpu | None = None
) -> Iterator[Step]:
    """The teacher's calls for so many rows of each scheme."""
    calls = {}
    for name in recipe.schemes:
        count = rows.get(name, 0)
        times = {
            "task": 1 / recipe.rows_per_task(name),
            "row": 1,
            "candidate": recipe.generate.candidates,
        }
        for call in recipe.scheme(name).calls:
            calls[f"{name} {call.kind}"] = count * times[call.per]
    whole = sum(teacher.weight for teacher in recipe.teachers)
    for teacher in recipe.teachers:
        for kind, count in calls.items():
            if count:
                share = count * teacher.weight / whole
                yield _calls(
                    "generate",
                    kind,
                    teacher,
                    share,
                    assumed,
                    gpu_of(recipe, teacher, gpu),
                )


def _judging(
    recipe: Recipe, rows: dict[str, float], assumed: Assumed, gpu: Gpu | None
) -> Iterator[Step]:
    for judge in recipe.judges if recipe.filter.judge else ():
        asked = sum(rows.values()) * recipe.generate.candidates * assumed.judged
        yield _calls(
            "filter", "judge", judge, asked, assumed, gpu_of(recipe, judge, gpu)
        )


def _calls(
    stage: str, kind: str, model: ModelSection, count: float, assumed: Assumed, gpu: Gpu
) -> Step:
    tokens = assumed.tokens(kind)
    into, out = count * tokens.into, count * tokens.out
    hours = _engine_hours(model.model, model, into, out, assumed, gpu)
    most = model.usd(into, count * max(model.max_tokens, tokens.out))
    return Step(
        stage, kind, model.model, count, into, out, model.usd(into, out), hours, most
    )


def _engine_hours(
    model: str,
    part: ModelSection | Serve,
    into: float,
    out: float,
    assumed: Assumed,
    gpu: Gpu,
) -> float:
    """GPU hours in vLLM: the same for one GPU or many, since each adds its own speed. None without a GPU."""
    if not gpus_of(part.engine, part.num_gpus):
        return 0.0
    return (
        assumed.engine_seconds(gpu, billions(model, assumed, active=True), into, out)
        / 3600
    )


def billions(model: str, assumed: Assumed, *, active: bool = False) -> float:
    """Billions of weights, from a name such as `falcon-40b` or `30B-A3B` (whose active ones are 3 billion), or from
    the model's shape."""
    working = re.search(r"-a(\d+(?:\.\d+)?)b\b", model.lower()) if active else None
    if working:
        return float(working.group(1))
    shape = model_shape(model)
    known = shape.weights / 1e9 if shape.known else None
    return billions_in(model.rpartition("/")[2]) or known or assumed.billions


# Training and evaluation.


def _training(
    recipe: Recipe, works: Iterable[TrainingWork], gpu: Gpu | None
) -> Iterator[Step]:
    for work in works:
        part = recipe.training(work.stage)
        hours = training_hours.gpu_hours(recipe, work, gpu_of(recipe, part, gpu))
        yield Step(
            work.stage,
            work.what,
            recipe.base.model,
            tokens_in=work.tokens(part),
            gpu_hours=hours,
        )


def _evaluation(recipe: Recipe, assumed: Assumed, gpu: Gpu | None) -> Iterator[Step]:
    harness, bench = recipe.evaluate.harness, recipe.evaluate.mt_bench
    if harness and harness.all_tasks:
        items = sum(task.limit or assumed.harness_items for task in harness.all_tasks)
        yield _served(
            recipe,
            "harness request",
            items * assumed.harness_choices * _checkpoints(recipe),
            assumed,
            gpu,
        )
    if bench:
        asked = 16 if bench.questions == "tiny" else assumed.mt_bench_questions
        turns = min(bench.limit or asked, asked) * 2
        yield _served(
            recipe, "mt_bench answer", turns * _checkpoints(recipe), assumed, gpu
        )
        yield from verdicts(recipe, turns, assumed, gpu)


def verdicts(
    recipe: Recipe, turns: float, assumed: Assumed, gpu: Gpu | None = None
) -> Iterator[Step]:
    """The calls of MT-Bench's judges for so many turns of each model."""
    bench = recipe.evaluate.mt_bench
    if not bench:
        return
    models = _checkpoints(recipe) + _published(bench)
    for judge in recipe.mt_bench_judges:
        yield _calls(
            "evaluate",
            "mt_bench judge",
            judge,
            turns * models,
            assumed,
            gpu_of(recipe, judge, gpu),
        )
    absent = _absent_checkpoints(recipe)
    pairs = [pair for pair in bench.pairwise if absent.isdisjoint(pair)]
    if pairs:
        both_orders = 2 * turns * len(pairs)
        judge = recipe.mt_bench_judges[0]
        yield _calls(
            "evaluate",
            "mt_bench comparison",
            judge,
            both_orders,
            assumed,
            gpu_of(recipe, judge, gpu),
        )


def _absent_checkpoints(recipe: Recipe) -> set[str]:
    """Names of aligned checkpoints that the recipe does not make.

    In `pairwise`, `dpo` stands for the aligned checkpoint, whatever its method.
    """
    absent = set(STAGES["align"].checkpoint_names)
    if recipe.align.is_trained:
        absent -= {recipe.checkpoint("align"), "dpo"}
    return absent


def _published(bench: MtBench) -> int:
    """Further models whose answers are judged, as far as their files are there."""
    there = tuple(pattern for pattern in bench.answers if matches(pattern))
    if not there:
        return 0
    from bezoar_ray.sources.mt_bench_files import load_answers

    return len(load_answers(bench.model_copy(update={"answers": there})))


def _checkpoints(recipe: Recipe) -> int:
    """How many are measured."""
    return 1 + len(recipe.trained)  # with the base


def _served(
    recipe: Recipe, kind: str, count: float, assumed: Assumed, gpu: Gpu | None
) -> Step:
    into, out = count * assumed.call[kind].into, count * assumed.call[kind].out
    card = gpu_of(recipe, recipe.serve, gpu)
    hours = _engine_hours(recipe.base.model, recipe.serve, into, out, assumed, card)
    return Step("evaluate", kind, recipe.base.model, count, into, out, gpu_hours=hours)
