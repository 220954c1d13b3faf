"""The steps of a recipe: calls of one kind to one model, or the training of one stage."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bezoar_ray.errors import RecipeError
from bezoar_ray.gpus import GPUS
from bezoar_ray.licences import commercial_use
from bezoar_ray.plan.assumed import Assumed, Tokens
from bezoar_ray.plan.memory import Need, model_shape, needs, training_pass
from bezoar_ray.plan.speeds import training_speed
from bezoar_ray.recipe import CHECKPOINTS, ModelPart, MtBench, Recipe, SourcePart, Training
from bezoar_ray.recipe.part import matches
from bezoar_ray.shapes import billions_in


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
    assumed: Assumed
    code: tuple[str, ...] = ()  # what of others the recipe runs
    budget: float | None = None  # dollars
    card: str = "H100"  # the kind of GPU that hours and memory are of
    needs: tuple[Need, ...] = ()  # of its memory, by stage
    commercial_use: tuple[str, tuple[str, ...]] = ("", ())  # the verdict and its causes

    def total(self, name: str) -> float:
        """The sum of one column."""
        return sum(getattr(step, name) for step in self.steps)


def plan(recipe: Recipe, assumed: Assumed | None = None, card: str | None = None) -> Plan:
    """What a recipe will call, cost and take on a kind of GPU: the one given, that the recipe names, or an H100.

    Raises:
        RecipeError: no such kind is known.
    """
    card = card or _card(recipe)
    if card not in GPUS:
        raise RecipeError(f"--gpu {card}: no such kind of GPU is known; there are {', '.join(GPUS)}")
    assumed = (assumed or Assumed()).on(card)
    rows = generated(recipe, assumed)
    use = commercial_use(recipe)
    return Plan(
        recipe=recipe.name,
        steps=(
            *generation(recipe, rows, assumed),
            *_judging(recipe, rows, assumed),
            *_training(recipe, rows, assumed, card),
            *_evaluation(recipe, assumed),
        ),
        rows=rows,
        assumed=assumed,
        code=tuple(_code(recipe)),
        budget=recipe.budget_usd,
        card=card,
        needs=tuple(needs(recipe, GPUS[card].memory)),
        commercial_use=(use["verdict"], tuple(use["because"])),
    )


def _card(recipe: Recipe) -> str:
    """The kind of GPU that the recipe asks for, where it is a known one."""
    sections = [recipe.sft, recipe.hh_sft, recipe.align, recipe.serve, *recipe.teachers]
    named = (section.accelerator_type for section in sections)
    return next((kind for kind in named if kind in GPUS), "H100")


def _code(recipe: Recipe) -> Iterator[str]:
    """The code that a recipe runs, besides ours."""
    yield from (f"{part.function} (generate.own.{name})" for name, part in recipe.generate.own.items())
    models = [("teacher", part) for part in recipe.teachers] + [("judge", part) for part in recipe.judges]
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
        seeds = min(part.evol_instruct.seeds, _rows(recipe.seeds.dolly) or part.evol_instruct.seeds)
        found["evol_instruct"] = float(seeds * part.evol_instruct.epochs)
    if part.orca:
        drawn = sum(mixture.rows or assumed.open_rows for mixture in part.orca.mixtures.values())
        found["orca"] = float(min(drawn, _rows(recipe.seeds.flan) or drawn, part.orca.rows or drawn))
    for name, own in part.own.items():
        works = min(own.works, _rows(getattr(recipe.seeds, own.seeds)) or own.works)
        found[name] = float(works * own.rows_per_work)
    return found


def _rows(sources: tuple[SourcePart, ...]) -> int | None:
    """The most rows that sources give, or None where one of them has no limit."""
    limits = [source.limit for source in sources]
    return sum(limits) if limits and all(limits) else None


def generation(recipe: Recipe, rows: dict[str, float], assumed: Assumed) -> Iterator[Step]:
    """The teacher's calls for so many rows of each scheme."""
    lamini, answers = recipe.generate.lamini, recipe.generate.candidates
    calls = {
        "lamini instructions": rows.get("lamini", 0) / (lamini.per_call if lamini else 1),
        "lamini answer": rows.get("lamini", 0) * answers,
        "evol_instruct rewrite": rows.get("evol_instruct", 0),
        "evol_instruct comparison": rows.get("evol_instruct", 0),
        "evol_instruct answer": rows.get("evol_instruct", 0) * answers,
        "orca answer": rows.get("orca", 0) * answers,
        **{f"{name} answer": rows.get(name, 0) * answers for name in recipe.generate.own},
    }
    whole = sum(teacher.weight for teacher in recipe.teachers)
    for teacher in recipe.teachers:
        for kind, count in calls.items():
            if count:
                yield _calls("generate", kind, teacher, count * teacher.weight / whole, assumed)


def _judging(recipe: Recipe, rows: dict[str, float], assumed: Assumed) -> Iterator[Step]:
    for judge in recipe.judges if recipe.filter.judge else ():
        asked = sum(rows.values()) * recipe.generate.candidates * assumed.judged
        yield _calls("filter", "judge", judge, asked, assumed)


def _calls(stage: str, kind: str, model: ModelPart, count: float, assumed: Assumed) -> Step:
    tokens = _tokens(kind, assumed)
    into, out = count * tokens.into, count * tokens.out
    hours = _engine_hours(model.model, model.num_gpus, into, out, assumed)
    most = model.usd(into, count * max(model.max_tokens, tokens.out))
    return Step(stage, kind, model.model, count, into, out, model.usd(into, out), hours, most)


def _tokens(kind: str, assumed: Assumed) -> Tokens:
    return assumed.call.get(kind) or assumed.call["own answer"]


def _engine_hours(model: str, gpus: float, into: float, out: float, assumed: Assumed) -> float:
    """GPU hours in vLLM: the same for one GPU or many, since each adds its own speed. None without a GPU."""
    seconds = (into / assumed.read_speed + out / assumed.write_speed) * billions(model, assumed, active=True)
    return seconds / 3600 if gpus else 0.0


def billions(model: str, assumed: Assumed, *, active: bool = False) -> float:
    """Billions of weights, from a name such as `falcon-40b` or `30B-A3B` (whose active ones are 3 billion)."""
    working = re.search(r"-a(\d+(?:\.\d+)?)b\b", model.lower()) if active else None
    return float(working.group(1)) if working else billions_in(model) or assumed.billions


# Training and evaluation.


def _training(recipe: Recipe, rows: dict[str, float], assumed: Assumed, card: str) -> Iterator[Step]:
    kept = {name: _kept(recipe, name, rows, assumed) for name in recipe.sft_order}
    tokens = sum(count * _row_tokens(name, assumed) for name, count in kept.items())
    accepted = sum(kept.values())
    yield _trained(recipe, "sft", f"{accepted:,.0f} accepted rows", accepted, tokens, card)
    if recipe.seeds.hh_rlhf:
        heldout = recipe.evaluate.heldout_pairs
        pairs = (_rows(recipe.seeds.hh_rlhf) or assumed.open_rows + heldout) - heldout
        chosen, both = _limited(recipe.hh_sft, pairs), _limited(recipe.align, pairs)
        yield _trained(recipe, "hh-sft", f"{chosen:,} conversations", chosen, chosen * assumed.hh_row, card)
        if recipe.align.method != "none":
            # Both sides, through the policy and (forward alone, a third of the work) through the reference.
            work = 4 / 3 if recipe.align.method in ("dpo", "kto") else 1
            yield _trained(recipe, "dpo", f"{both:,} pairs", both, both * 2 * assumed.hh_row, card, work)


def _kept(recipe: Recipe, name: str, rows: dict[str, float], assumed: Assumed) -> float:
    """Rows of a data set that are trained on."""
    if source := recipe.sft.data.get(name):
        found = float(source.limit or assumed.open_rows)
    else:
        found = rows.get(name, 0.0) * assumed.accepted.get(name, assumed.own_accepted)
    return min(found, recipe.filter.cap.get(name, found), recipe.sft.limit or found)


def _row_tokens(scheme: str, assumed: Assumed) -> float:
    """Tokens of a training row: the call that wrote its answer holds both its sides."""
    tokens = _tokens(f"{scheme} answer", assumed)
    return tokens.into + tokens.out


def _limited(part: Training, rows: int) -> int:
    return max(0, min(part.limit or rows, rows))


def _trained(
    recipe: Recipe, stage: str, what: str, rows: float, tokens: float, card: str, work: float = 1.0
) -> Step:
    """A training stage on GPUs of a kind; one without GPUs takes no GPU hours."""
    part, hours = recipe.training(stage), 0.0
    tokens *= part.epochs
    if part.gpus_per_worker and rows:
        compiled = part.compiles(rows / part.batch * part.epochs)
        found = training_pass(recipe, stage, GPUS[card].memory, compiled)
        of_a_step = tokens / part.epochs / rows * part.share
        size = min(of_a_step, found.tokens) if found else of_a_step
        recomputed = found is None or found.recomputed
        speed = training_speed(model_shape(recipe.base.model), card, size, compiled, recomputed)
        hours = tokens * work / speed / 3600
    return Step(stage, what, recipe.base.model, tokens_in=tokens, gpu_hours=hours)


def _evaluation(recipe: Recipe, assumed: Assumed) -> Iterator[Step]:
    harness, bench = recipe.evaluate.harness, recipe.evaluate.mt_bench
    if harness and harness.all_tasks:
        items = sum(task.limit or assumed.harness_items for task in harness.all_tasks)
        yield _served(recipe, "harness request", items * assumed.harness_choices * _checkpoints(recipe), assumed)
    if bench:
        asked = 16 if bench.questions == "tiny" else assumed.mt_bench_questions
        turns = min(bench.limit or asked, asked) * 2
        yield _served(recipe, "mt_bench answer", turns * _checkpoints(recipe), assumed)
        yield from verdicts(recipe, turns, assumed)


def verdicts(recipe: Recipe, turns: float, assumed: Assumed) -> Iterator[Step]:
    """The calls of MT-Bench's judges for so many turns of each model."""
    models = _checkpoints(recipe) + _published(recipe.evaluate.mt_bench)
    for judge in recipe.mt_bench_judges:
        yield _calls("evaluate", "mt_bench judge", judge, turns * models, assumed)
    left_out = "dpo" if recipe.align.method == "none" else ""
    if pairs := sum(left_out not in pair for pair in recipe.evaluate.mt_bench.pairwise):
        both_orders = 2 * turns * pairs
        yield _calls("evaluate", "mt_bench comparison", recipe.mt_bench_judges[0], both_orders, assumed)


def _published(bench: MtBench) -> int:
    """Further models whose answers are judged, as far as their files are there."""
    there = tuple(pattern for pattern in bench.answers if matches(pattern))
    if not there:
        return 0
    from bezoar_ray.sources.mt_bench import load_answers

    return len(load_answers(bench.model_copy(update={"answers": there})))


def _checkpoints(recipe: Recipe) -> int:
    """How many are measured."""
    return len(CHECKPOINTS) - (recipe.align.method == "none")


def _served(recipe: Recipe, kind: str, count: float, assumed: Assumed) -> Step:
    into, out = count * assumed.call[kind].into, count * assumed.call[kind].out
    hours = _engine_hours(recipe.base.model, recipe.serve.num_gpus, into, out, assumed)
    return Step("evaluate", kind, recipe.base.model, count, into, out, gpu_hours=hours)
