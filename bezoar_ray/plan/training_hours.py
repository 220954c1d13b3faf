"""The rows that the training stages train on, and the GPU hours that this takes."""

from collections.abc import Iterator
from dataclasses import dataclass

from bezoar_ray.plan.assumed import Assumed
from bezoar_ray.plan.memory import (
    MemoryNeed,
    TrainingPass,
    training_need,
    training_pass,
    worker_memory,
)
from bezoar_ray.plan.speeds import training_speed
from bezoar_ray.recipe import (
    Align,
    RatingSource,
    Recipe,
    Rm,
    SourceSection,
    Steer,
    Training,
)
from bezoar_ray.runtime.gpus import Gpu
from bezoar_ray.runtime.model_shapes import model_shape


@dataclass(frozen=True)
class TrainingWork:
    """The rows of one training stage."""

    stage: str
    description: str
    """In words, with the number of rows."""
    rows: float
    row_tokens: float
    """Mean tokens of a row. A pair counts with both sides."""
    passes: float = 1.0
    """Computation for a row, relative to plain training. The forward pass of a
    reference model adds to it."""

    def steps(self, section: Training) -> float:
        """Optimizer steps of all epochs."""
        return self.rows / section.batch * section.epochs

    def tokens(self, section: Training) -> float:
        """Tokens of all epochs."""
        return self.rows * self.row_tokens * section.epochs


def training_work(
    recipe: Recipe, rows: dict[str, float], assumed: Assumed
) -> Iterator[TrainingWork]:
    """The work of each training stage that has something to train on.

    Args:
        recipe: what is planned.
        rows: generated rows, by scheme.
        assumed: the assumptions.
    """
    yield _sft_work(recipe, rows, assumed)
    if recipe.seeds.hh_rlhf:
        conversations = _limited(recipe.hh_sft, _training_pairs(recipe, assumed))
        yield TrainingWork(
            "hh-sft",
            f"{conversations:,} conversations",
            conversations,
            assumed.hh_row,
        )
    if recipe.rm:
        yield _rm_work(recipe, recipe.rm, assumed)
    if recipe.seeds.hh_rlhf and recipe.align.is_trained:
        pairs = _limited(recipe.align, _training_pairs(recipe, assumed))
        if recipe.align.method == "ppo":
            yield _ppo_work(recipe.align, pairs, assumed)
            return
        if recipe.align.method == "steer" and recipe.align.steer:
            yield _steer_work(recipe, recipe.align.steer, pairs, assumed)
            return
        has_reference = recipe.align.method in ("dpo", "kto")
        # A forward pass alone, through the reference, is a third of the computation.
        passes = 4 / 3 if has_reference else 1.0
        yield TrainingWork(
            "align",
            f"{pairs:,} pairs",
            pairs,
            2 * assumed.hh_row,
            passes,
        )


def _ppo_work(align: Align, prompts: int, assumed: Assumed) -> TrainingWork:
    """The episodes of ppo, without their sampling, of which no speed is known."""
    ppo = align.ppo
    trained_adapters = 2 if ppo.advantage == "gae" else 1
    # Policy, reference and reward model first score each episode, and so does a critic.
    # A forward pass alone is a third of the computation of training.
    scoring_passes = (2 + trained_adapters) / 3
    episodes = round(prompts * ppo.group * align.epochs)
    return TrainingWork(
        "align",
        f"{episodes:,} episodes, without their sampling",
        prompts,
        ppo.group * assumed.hh_row,
        scoring_passes + ppo.passes * trained_adapters,
    )


def _steer_work(
    recipe: Recipe, steer: Steer, prompts: int, assumed: Assumed
) -> TrainingWork:
    """The rated answers and the rounds, in rows of SteerLM 1."""
    align = recipe.align
    ratings = _limited(align, _rows_of(recipe.seeds.helpsteer) or assumed.open_rows)
    prompts = min(prompts, steer.prompts)
    answers = steer.iterations * prompts * steer.samples
    # Each answer is scored by three models once, and a forward pass is a third of the
    # computation of training.
    epochs = steer.epochs or align.epochs
    of_answers = answers * (epochs + 1) * assumed.hh_row / align.epochs
    description = f"{ratings:,} rated answers"
    if steer.iterations:
        description += (
            f", {steer.iterations} x {prompts:,} prompts with {steer.samples} answers "
            "each, without their sampling"
        )
    tokens = ratings * assumed.rated_row + of_answers
    return TrainingWork("align", description, ratings, tokens / ratings)


def _training_pairs(recipe: Recipe, assumed: Assumed) -> int:
    """The pairs of HH-RLHF that are not held out."""
    # Without a limit, as many pairs are left to train on as other sources
    # are assumed to have rows.
    heldout = recipe.evaluate.heldout_pairs
    all_pairs = limit_of(recipe.seeds.hh_rlhf) or assumed.open_rows + heldout
    return all_pairs - heldout


def _sft_work(recipe: Recipe, rows: dict[str, float], assumed: Assumed) -> TrainingWork:
    accepted = 0.0
    tokens = 0.0
    for name in recipe.sft_order:
        count = _rows_to_train_on(recipe, name, rows, assumed)
        accepted += count
        tokens += count * _row_tokens(name, assumed)
    return TrainingWork(
        "sft",
        f"{accepted:,.0f} accepted rows",
        accepted,
        tokens / accepted if accepted else 0.0,
    )


def _rm_work(recipe: Recipe, rm: Rm, assumed: Assumed) -> TrainingWork:
    """The rated answers and the pairs of a reward model."""
    seeds = recipe.seeds
    sources = {
        "ratings": (seeds.helpsteer, "rated answers", assumed.rated_row),
        "preferences": (seeds.preferences, "preferences", 2 * assumed.rated_row),
        "hh_rlhf": (seeds.hh_rlhf, "pairs", 2 * assumed.hh_row),
    }
    descriptions = []
    rows = 0.0
    tokens = 0.0
    for name in rm.order:
        sections, noun, row_tokens = sources[name]
        if not sections:
            continue
        count = _limited(rm, _rows_of(sections) or assumed.open_rows)
        descriptions.append(f"{count:,} {noun}")
        rows += count
        tokens += count * row_tokens
    description = ", ".join(descriptions) or "no rows"
    return TrainingWork("rm", description, rows, tokens / rows if rows else 0.0)


def _rows_of(sections: tuple[SourceSection, ...]) -> int | None:
    """The rows that sources give together; None if that of one of them is unknown."""
    from bezoar_ray.sources.helpsteer import published_rows

    rows = 0
    for section in sections:
        known = section.limit
        if known is None and isinstance(section, RatingSource):
            known = published_rows(section)
        if known is None:
            return None
        rows += known
    return rows


def gpu_hours(recipe: Recipe, work: TrainingWork, gpu: Gpu) -> float:
    """Hours of all GPUs of a stage together; 0 without GPUs or without rows.

    The speed is that of flat passes in bfloat16. A worker computes on one GPU, even if
    it has several.
    """
    section = recipe.training(work.stage)
    if not section.gpus_per_worker or not work.rows:
        return 0.0
    compiled = section.compiles(work.steps(section))
    memory = worker_memory(recipe, work.stage, gpu)
    largest_pass = training_pass(recipe, work.stage, memory, compiled)
    speed = training_speed(
        model_shape(recipe.base.model),
        gpu,
        _pass_tokens(section, work, largest_pass),
        compiled,
        largest_pass is None or largest_pass.recomputed,
    )
    seconds = work.passes * work.tokens(section) / speed
    return seconds / 3600 * max(1.0, section.gpus_per_worker)


def _pass_tokens(
    section: Training, work: TrainingWork, largest_pass: TrainingPass | None
) -> float:
    """Mean tokens of a pass: a worker's rows of a step, as far as they fit."""
    step_tokens = section.share * work.row_tokens
    if largest_pass is None:
        return step_tokens
    size = largest_pass.size
    if size.rows:
        return min(step_tokens, size.rows * work.row_tokens)
    return min(step_tokens, size.tokens or 0)


def need(recipe: Recipe, work: TrainingWork, gpu: Gpu) -> MemoryNeed:
    """The GPU memory that a training stage needs."""
    section = recipe.training(work.stage)
    compiled = section.compiles(work.steps(section))
    return training_need(recipe, work.stage, gpu, compiled)


def limit_of(sources: tuple[SourceSection, ...]) -> int | None:
    """The most rows that sources give together; None if one of them has no limit."""
    limits = [source.limit for source in sources if source.limit]
    if not sources or len(limits) < len(sources):
        return None
    return sum(limits)


def _rows_to_train_on(
    recipe: Recipe, name: str, rows: dict[str, float], assumed: Assumed
) -> float:
    """Rows of one of sft's data sets that are trained on."""
    source = recipe.sft.data.get(name)
    if source:
        count = float(source.limit or assumed.open_rows)
    else:
        share = assumed.accepted.get(name, assumed.own_accepted)
        count = rows.get(name, 0.0) * share
    count = min(count, recipe.filter.cap.get(name, count))
    return min(count, recipe.sft.limit or count)


def _row_tokens(scheme: str, assumed: Assumed) -> float:
    """Tokens of a training row, which are those of the call that wrote its answer."""
    tokens = assumed.tokens(f"{scheme} answer")
    return tokens.into + tokens.out


def _limited(section: Training, rows: int) -> int:
    return max(0, min(section.limit or rows, rows))
