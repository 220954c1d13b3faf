"""The steps of a plan: calls of one kind to one model, or one stage's training."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bezoar_ray.licenses import commercial_use
from bezoar_ray.plan import training_hours
from bezoar_ray.plan.assumed import Assumed
from bezoar_ray.plan.memory import MemoryNeed, engine_need
from bezoar_ray.plan.training_hours import TrainingWork
from bezoar_ray.recipe import ModelSection, MtBench, Recipe, RewardBench, Serve
from bezoar_ray.recipe.section import SchedulingSection, gpus_of, matches
from bezoar_ray.runtime.gpus import GPUS, USUAL, Gpu, known_gpu
from bezoar_ray.runtime.model_shapes import billions_in, model_shape
from bezoar_ray.stages import STAGES, checkpoint_names

_TINY_QUESTIONS = 16
"""MT-Bench questions of the embedded world."""
_TINY_PAIRS = 160
_TINY_BEST_OF_4 = 120
"""RewardBench items of the embedded world, of both versions."""
_SUBSETS = 23
_SUBSETS_2 = 6
"""Subsets of both versions of RewardBench."""


@dataclass(frozen=True)
class Step:
    """One line of a plan."""

    stage: str
    description: str
    """The kind of call, or the rows that are trained on."""
    model: str
    calls: float = 0
    tokens_in: float = 0
    tokens_out: float = 0
    usd: float = 0
    """Dollars for calls to an endpoint."""
    gpu_hours: float = 0
    usd_most: float = 0
    """Dollars if every answer is as long as `max_tokens` allows."""


@dataclass(frozen=True)
class Plan:
    """All steps of a recipe, and the assumptions behind them."""

    recipe: str
    steps: tuple[Step, ...]
    rows: dict[str, float]
    """Rows that each scheme generates, at most."""
    assumed: Assumed
    code: tuple[str, ...] = ()
    """Code that the recipe runs and that is not part of this package."""
    budget: float | None = None
    """Dollars."""
    needs: tuple[MemoryNeed, ...] = ()
    """GPU memory that each stage needs, for the stages that use GPUs."""
    unknown_gpus: tuple[str, ...] = ()
    """Kinds of GPU that the recipe names and that `GPUS` does not have."""
    commercial_use: tuple[str, tuple[str, ...]] = ("", ())
    """The verdict on commercial use, and its causes."""

    def total(self, column: str) -> float:
        """The sum of one field of the steps."""
        return sum(getattr(step, column) for step in self.steps)


def plan(
    recipe: Recipe, assumed: Assumed | None = None, gpu: Gpu | None = None
) -> Plan:
    """Plan a recipe: its calls, cost, GPU hours and GPU memory.

    Args:
        recipe: what is planned.
        assumed: numbers that the recipe does not give.
        gpu: the kind of all GPUs. If None, each stage has the kind that the recipe
            names.
    """
    assumed = assumed or Assumed()
    rows = generated(recipe, assumed)
    training_work = tuple(training_hours.training_work(recipe, rows, assumed))
    steps = [
        *generation(recipe, rows, assumed, gpu),
        *_judging(recipe, rows, assumed, gpu),
        *_training(recipe, training_work, gpu),
        *_evaluation(recipe, assumed, gpu),
    ]
    for stage in STAGES.values():
        if not stage.scheduled:  # It calls no model and trains none.
            steps.append(Step(stage.name, stage.label, ""))
    unknown_gpus: list[str] = []
    if gpu is None:
        unknown_gpus = [kind for kind in _named_gpus(recipe) if not known_gpu(kind)]
    use = commercial_use(recipe)
    return Plan(
        recipe=recipe.name,
        steps=tuple(steps),
        rows=rows,
        assumed=assumed,
        code=tuple(_code(recipe)),
        budget=recipe.budget_usd,
        needs=tuple(_needs(recipe, training_work, gpu)),
        unknown_gpus=tuple(sorted(unknown_gpus)),
        commercial_use=(use["verdict"], tuple(use["because"])),
    )


def gpu_of(recipe: Recipe, section: SchedulingSection, given: Gpu | None = None) -> Gpu:
    """The kind of GPU on which a section is planned.

    It is the given one, the section's own, the only one that the recipe names anywhere,
    or an H100, in this order.
    """
    if given:
        return given
    if section.accelerator_type:
        return known_gpu(section.accelerator_type) or GPUS[USUAL]
    named = {}
    for kind in _named_gpus(recipe):
        gpu = known_gpu(kind)
        if gpu:
            named[gpu.kind] = gpu
    if len(named) == 1:
        return next(iter(named.values()))
    return GPUS[USUAL]


def _named_gpus(recipe: Recipe) -> set[str]:
    """The kinds of GPU that a recipe's sections request."""
    sections = [recipe.serve, *recipe.teachers, *recipe.judges]
    for stage in recipe.stages:
        if STAGES[stage].section:
            sections.append(recipe.training(stage))
    kinds = {section.accelerator_type for section in sections}
    return {kind for kind in kinds if kind}


def _needs(
    recipe: Recipe, training_work: Iterable[TrainingWork], gpu: Gpu | None
) -> Iterator[MemoryNeed]:
    """The memory that every stage with GPUs needs of one of them."""
    models: list[tuple[str, ModelSection]] = []
    models += [("generate", teacher) for teacher in recipe.teachers]
    if recipe.filter.judge:
        models += [("filter", judge) for judge in recipe.judges]
    for stage, model in models:
        if _has_gpus(model) and not model.base_url:
            yield engine_need(stage, model.model, model, gpu_of(recipe, model, gpu))
    for work in training_work:
        section = recipe.training(work.stage)
        if section.gpus_per_worker:
            yield training_hours.need(recipe, work, gpu_of(recipe, section, gpu))
    serve = recipe.serve
    if _has_gpus(serve) and recipe.scheduled("evaluate"):
        kind = gpu_of(recipe, serve, gpu)
        yield engine_need("evaluate", recipe.base.model, serve, kind)


def _has_gpus(section: ModelSection | Serve) -> bool:
    return gpus_of(section.engine, section.num_gpus) > 0


def _code(recipe: Recipe) -> Iterator[str]:
    """The code that a recipe runs and that is not part of this package, in words."""
    for name, scheme in recipe.generate.own.items():
        yield f"{scheme.function} (generate.own.{name})"
    models = [
        *(("teacher", teacher) for teacher in recipe.teachers),
        *(("judge", judge) for judge in recipe.judges),
        ("base", recipe.base),
    ]
    for role, model in models:
        if model.trust_remote_code:
            yield (
                f"code of {model.model} at {model.revision} ({role}: trust_remote_code)"
            )
        if model.pickled_weights:
            yield (
                f"pickled weights of {model.model} ({role}: pickled_weights), which "
                "can hold code"
            )
    harness = recipe.evaluate.harness
    if harness and harness.include_path not in (None, "tiny"):
        yield (
            f"functions that the tasks in {harness.include_path} name "
            "(evaluate.harness.include_path)"
        )


# Generation and filter.


def generated(recipe: Recipe, assumed: Assumed) -> dict[str, float]:
    """Rows that each scheme of the recipe generates, at most.

    All candidates for an instruction are one row here.
    """
    rows: dict[str, float] = {}
    for name in recipe.schemes:
        sources = getattr(recipe.seeds, recipe.scheme(name).seeds)
        limit = training_hours.limit_of(sources)
        section = recipe.generate.section(name)
        rows[name] = float(section.max_rows(limit, assumed.open_rows))
    return rows


def generation(
    recipe: Recipe, rows: dict[str, float], assumed: Assumed, gpu: Gpu | None = None
) -> Iterator[Step]:
    """The teachers' calls.

    Args:
        recipe: what is planned.
        rows: generated rows, by scheme.
        assumed: the assumptions.
        gpu: the kind of all GPUs.
    """
    calls = {}
    for name in recipe.schemes:
        calls_per_row = {
            "task": 1 / recipe.rows_per_task(name),
            "row": 1,
            "candidate": recipe.generate.candidates,
        }
        for call in recipe.scheme(name).calls:
            count = rows.get(name, 0) * calls_per_row[call.per]
            if count:
                calls[f"{name} {call.kind}"] = count
    total_weight = sum(teacher.weight for teacher in recipe.teachers)
    for teacher in recipe.teachers:
        teacher_gpu = gpu_of(recipe, teacher, gpu)
        for kind, count in calls.items():
            share = count * teacher.weight / total_weight
            yield _calls("generate", kind, teacher, share, assumed, teacher_gpu)


def _judging(
    recipe: Recipe, rows: dict[str, float], assumed: Assumed, gpu: Gpu | None
) -> Iterator[Step]:
    if not recipe.filter.judge:
        return
    count = sum(rows.values()) * recipe.generate.candidates * assumed.judged
    for judge in recipe.judges:
        judge_gpu = gpu_of(recipe, judge, gpu)
        kind = "reward judge" if judge.reward else "judge"
        yield _calls("filter", kind, judge, count, assumed, judge_gpu)
        pairs = min(recipe.filter.counterfactuals, count)
        if pairs:
            kind = f"counterfactual {kind}"
            yield _calls("filter", kind, judge, pairs, assumed, judge_gpu)


def _calls(
    stage: str, kind: str, model: ModelSection, count: float, assumed: Assumed, gpu: Gpu
) -> Step:
    """The calls of one kind to a teacher or judge."""
    tokens = assumed.tokens(kind)
    into = count * tokens.into
    out = count * tokens.out
    longest_out = count * max(model.max_tokens, tokens.out)
    return Step(
        stage=stage,
        description=kind,
        model=model.model,
        calls=count,
        tokens_in=into,
        tokens_out=out,
        usd=model.usd(into, out),
        gpu_hours=_engine_hours(model.model, model, into, out, assumed, gpu),
        usd_most=model.usd(into, longest_out),
    )


def _engine_hours(
    model: str,
    section: ModelSection | Serve,
    into: float,
    out: float,
    assumed: Assumed,
    gpu: Gpu,
) -> float:
    """GPU hours in vLLM for some tokens; 0 without a GPU.

    They do not depend on the number of GPUs, since each adds its own speed.
    """
    if not _has_gpus(section):
        return 0.0
    active = billions(model, assumed, active=True)
    return assumed.engine_seconds(gpu, active, into, out) / 3600


def billions(model: str, assumed: Assumed, *, active: bool = False) -> float:
    """Billions of weights of a model.

    They are read from a name such as `falcon-40b`, or else from the model's shape.

    Args:
        model: name or folder.
        assumed: has the number for a model of which nothing is known.
        active: count only the weights that a token uses, which a name such as
            `30B-A3B` tells (3 billion).
    """
    if active:
        match = re.search(r"-a(\d+(?:\.\d+)?)b\b", model.lower())
        if match:
            return float(match.group(1))
    # Without the owner, whose name may hold a number with a letter as well.
    named = billions_in(model.rpartition("/")[2])
    if named:
        return named
    shape = model_shape(model)
    if shape.known:
        return shape.weights / 1e9
    return assumed.billions


# Training and evaluation.


def _training(
    recipe: Recipe, training_work: Iterable[TrainingWork], gpu: Gpu | None
) -> Iterator[Step]:
    for work in training_work:
        section = recipe.training(work.stage)
        section_gpu = gpu_of(recipe, section, gpu)
        yield Step(
            stage=work.stage,
            description=work.description,
            model=recipe.base.model,
            tokens_in=work.tokens(section),
            gpu_hours=training_hours.gpu_hours(recipe, work, section_gpu),
        )


def _evaluation(recipe: Recipe, assumed: Assumed, gpu: Gpu | None) -> Iterator[Step]:
    checkpoints = _checkpoints(recipe)
    harness = recipe.evaluate.harness
    if harness and harness.all_tasks:
        items = 0
        for task in harness.all_tasks:
            items += task.limit or task.sample or assumed.harness_items
        requests = items * assumed.harness_choices * checkpoints
        yield _served(recipe, "harness request", requests, assumed, gpu)
    bench = recipe.evaluate.mt_bench
    if bench:
        questions = assumed.mt_bench_questions
        if bench.questions == "tiny":
            questions = _TINY_QUESTIONS
        # MT-Bench's questions have two turns.
        turns = 2 * min(bench.limit or questions, questions)
        yield _served(recipe, "mt_bench answer", turns * checkpoints, assumed, gpu)
        yield from verdicts(recipe, turns, assumed, gpu)
    reward_bench = recipe.evaluate.reward_bench
    if reward_bench:
        # All checkpoints read all answers, and so does the reward model.
        passes = checkpoints + (1 if recipe.rm else 0)
        answers = _answers_to_rank(reward_bench, assumed)
        yield _served(recipe, "reward_bench answer", answers * passes, assumed, gpu)


def _answers_to_rank(section: RewardBench, assumed: Assumed) -> int:
    """Answers in RewardBench, of both versions."""
    answers = 0
    if section.one:
        pairs = assumed.reward_bench_items
        if section.one.source == "tiny":
            pairs = _TINY_PAIRS
        answers += 2 * _first_items(pairs, _SUBSETS, section.limit)
    if section.two:
        prompts = assumed.reward_bench_2_items
        if section.two.source == "tiny":
            prompts = _TINY_BEST_OF_4
        answers += 4 * _first_items(prompts, _SUBSETS_2, section.limit)
    return answers


def _first_items(items: int, subsets: int, limit: int | None) -> int:
    """Items that a limit of each subset leaves."""
    return items if limit is None else min(items, limit * subsets)


def verdicts(
    recipe: Recipe, turns: float, assumed: Assumed, gpu: Gpu | None = None
) -> Iterator[Step]:
    """The calls of MT-Bench's judges.

    Args:
        recipe: what is planned.
        turns: answers of each model.
        assumed: the assumptions.
        gpu: the kind of all GPUs.
    """
    bench = recipe.evaluate.mt_bench
    if not bench:
        return
    grades = turns * (_checkpoints(recipe) + _published_models(bench))
    for judge in recipe.mt_bench_judges:
        judge_gpu = gpu_of(recipe, judge, gpu)
        yield _calls("evaluate", "mt_bench judge", judge, grades, assumed, judge_gpu)
    absent = _absent_checkpoints(recipe)
    pairs = [pair for pair in bench.pairwise if absent.isdisjoint(pair)]
    if pairs:
        comparisons = 2 * turns * len(pairs)  # in both orders
        judge = recipe.mt_bench_judges[0]
        yield _calls(
            "evaluate",
            "mt_bench comparison",
            judge,
            comparisons,
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


def _published_models(bench: MtBench) -> int:
    """Number of other models whose answers are judged.

    Only files count that exist: a plan must not fail for a file that is yet to come.
    """
    patterns = tuple(pattern for pattern in bench.answers if matches(pattern))
    if not patterns:
        return 0
    from bezoar_ray.sources.mt_bench_files import load_answers

    return len(load_answers(bench.model_copy(update={"answers": patterns})))


def _checkpoints(recipe: Recipe) -> int:
    """Number of checkpoints that are asked, with the base."""
    trained = {recipe.checkpoint(stage) for stage in recipe.trained}
    return 1 + len(trained.intersection(checkpoint_names()))


def _served(
    recipe: Recipe, kind: str, count: float, assumed: Assumed, gpu: Gpu | None
) -> Step:
    """Requests to the served checkpoints."""
    tokens = assumed.call[kind]
    into = count * tokens.into
    out = count * tokens.out
    model = recipe.base.model
    serve_gpu = gpu_of(recipe, recipe.serve, gpu)
    return Step(
        stage="evaluate",
        description=kind,
        model=model,
        calls=count,
        tokens_in=into,
        tokens_out=out,
        gpu_hours=_engine_hours(model, recipe.serve, into, out, assumed, serve_gpu),
    )
