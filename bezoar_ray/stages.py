"""The registry of all stages and checkpoints.

The orchestrator, fingerprints, plan, doctor, capacity check, sweep, serving, report,
cards and `--help` read their lists from here. A new stage is a module with a function
`run(context)` and one entry in `STAGES`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bezoar_ray import layout

if TYPE_CHECKING:
    from bezoar_ray.recipe import Recipe
    from bezoar_ray.runtime.progress import Progress
    from bezoar_ray.store import Store

Truth = Callable[[str, str], bool | None]
"""Whether a response to an instruction is right, or None if that is unknown."""

BASE = "base"
"""The checkpoint that training starts from, with the tokenizer and chat template."""

REWARD_MODEL = "rm"
"""The checkpoint that rates answers."""


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint that a training stage makes.

    It is named after the stage, or after the method that the recipe chooses.
    """

    parent: str
    """The checkpoint that its training starts from."""
    below: tuple[str, ...]
    """The checkpoints whose adapters, with its own, add up to it on the base."""
    trained: str
    """A description of the training, for its card."""
    colour: str
    """The color in charts."""
    methods: tuple[str, ...] = ()
    """The methods that the recipe can choose, if the checkpoint is named after one."""
    is_reward_model: bool = False
    """Whether it scores answers and writes none."""


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe."""

    name: str
    label: str
    """A few words on its work, for `bezoar plan`."""
    module: str
    """The module whose function `run(context)` carries it out."""
    reads: tuple[str, ...] = ()
    """Paths in the recipe that enter its fingerprint.

    All that the stages before it read enters, too.
    """
    section: str = ""
    """The section of the recipe with the settings of a training stage."""
    scheduled: tuple[str, ...] = ()
    """The sections of the recipe with the Ray resources of its actors or workers."""
    checkpoint: Checkpoint | None = None
    """The checkpoint of a training stage."""
    used_by: tuple[str, ...] = ()
    """The later stages that use its results; by default all of them."""
    used_by_methods: tuple[str, ...] = ()
    """Methods of other later stages that use its results, too."""
    first_name: str = ""
    """The name in earlier versions.

    `--stages` and old run directories may use it, and fingerprints keep it.
    """

    @property
    def checkpoint_names(self) -> tuple[str, ...]:
        """The names that the checkpoint of the stage can have."""
        if self.checkpoint is None:
            return ()
        return self.checkpoint.methods or (self.name,)

    @property
    def key(self) -> str:
        """The name of the stage in fingerprints and cache files. It never changes."""
        return self.first_name or self.name


def _by_name(*stages: Stage) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages}


STAGES = _by_name(
    Stage(
        name="generate",
        label="rows by the teachers",
        module="bezoar_ray.generate.stage",
        reads=("seed", "seeds.dolly", "seeds.flan", "teachers", "generate"),
        scheduled=("teachers",),
    ),
    Stage(
        name="filter",
        label="gates and judges",
        module="bezoar_ray.filter.stage",
        reads=("judges", "filter"),
        scheduled=("judges",),
    ),
    Stage(
        name="sft",
        label="training on accepted rows",
        module="bezoar_ray.train.training_stages",
        # The held-out pairs score every checkpoint, and are left out
        # of the pairs that train.
        reads=("base", "template", "seeds.hh_rlhf", "evaluate.heldout_pairs", "sft"),
        section="sft",
        scheduled=("sft",),
        checkpoint=Checkpoint(
            parent=BASE,
            below=(),
            trained="supervised fine-tuning on the accepted synthetic rows",
            colour="#3b82f6",
        ),
    ),
    Stage(
        name="hh-sft",
        label="training on preferred answers",
        module="bezoar_ray.train.training_stages",
        reads=("hh_sft",),
        section="hh_sft",
        scheduled=("hh_sft",),
        checkpoint=Checkpoint(
            parent="sft",
            below=("sft",),
            trained="supervised fine-tuning on the preferred side of HH-RLHF, from `sft`",
            colour="#f59e0b",
        ),
    ),
    Stage(
        name="rm",
        label="training on ratings",
        module="bezoar_ray.train.training_stages",
        reads=("rm", "seeds.helpsteer", "seeds.preferences"),
        section="rm",
        scheduled=("rm",),
        checkpoint=Checkpoint(
            parent="sft",
            below=("sft",),
            trained="regression on the ratings of answers, from `sft`",
            colour="#ec4899",
            is_reward_model=True,
        ),
        used_by=("evaluate", "report"),
        used_by_methods=("ppo", "steer"),
    ),
    Stage(
        name="align",
        first_name="dpo",
        label="training on pairs",
        module="bezoar_ray.train.training_stages",
        reads=("align",),
        section="align",
        scheduled=("align",),
        checkpoint=Checkpoint(
            parent="hh-sft",
            below=("sft",),  # it continues hh-sft's own adapter
            trained="{method}, from `hh-sft`",
            colour="#10b981",
            methods=("dpo", "kto", "orpo", "asft", "ppo", "steer"),
        ),
    ),
    Stage(
        name="evaluate",
        label="tasks and questions",
        module="bezoar_ray.evaluate.evaluate_stage",
        # Without judges of its own, evaluate asks the recipe's first judge.
        reads=("serve", "evaluate", "mt_bench_judges"),
        scheduled=("serve",),
    ),
    Stage(
        name="report",
        label="page and cards",
        module="bezoar_ray.report.report_stage",
        reads=("name",),
    ),
)
"""All stages by name, in order: each reads the results of the one before it."""

TOGETHER = {("generate", "filter"): "bezoar_ray.runs.generate_and_filter"}
"""Pairs of stages that run as one if both are requested, and the module for it."""


def checkpoint_names() -> tuple[str, ...]:
    """Return all names that a checkpoint which writes answers can have.

    The base comes first, the others in the order of training.
    """
    names = [BASE]
    for name in trained_checkpoint_names():
        if not checkpoint_of(name).is_reward_model:
            names.append(name)
    return tuple(names)


def trained_checkpoint_names() -> tuple[str, ...]:
    """Return the names that the checkpoints of training stages can have, in order."""
    return tuple(_stage_of_checkpoint())


def stages_before(stage: str, method: str = "") -> tuple[str, ...]:
    """Return the earlier stages whose results a stage uses, in order.

    Args:
        stage: name of the stage.
        method: the one that the recipe chooses for it, on which this may depend.
    """
    names = []
    for name, entry in STAGES.items():
        if name == stage:
            break
        by_stage = not entry.used_by or stage in entry.used_by
        if by_stage or method in entry.used_by_methods:
            names.append(name)
    return tuple(names)


def stage_of(checkpoint: str) -> Stage:
    """Return the stage that makes a checkpoint.

    Raises:
        KeyError: No stage makes a checkpoint of that name.
    """
    return _stage_of_checkpoint()[checkpoint]


def checkpoint_of(name: str) -> Checkpoint:
    """Return the registry entry of a trained checkpoint, by the checkpoint's name.

    Raises:
        KeyError: No stage makes a checkpoint of that name.
    """
    checkpoint = stage_of(name).checkpoint
    assert checkpoint  # stage_of returns training stages only
    return checkpoint


def adapters_of(name: str) -> tuple[str, ...]:
    """Return the checkpoints whose adapters add up to a checkpoint on the base."""
    return (*checkpoint_of(name).below, name)


def _stage_of_checkpoint() -> dict[str, Stage]:
    stages = {}
    for stage in STAGES.values():
        for name in stage.checkpoint_names:
            stages[name] = stage
    return stages


def training_stages() -> tuple[str, ...]:
    """Return the stages that make a checkpoint."""
    return tuple(name for name, stage in STAGES.items() if stage.checkpoint)


def working_stages() -> tuple[str, ...]:
    """Return all stages but the report, which only reads files of the others."""
    return tuple(name for name in STAGES if name != "report")


def current_names(names: Iterable[str]) -> list[str]:
    """Replace the names that stages had in earlier versions by the current ones."""
    current = {stage.first_name: stage.name for stage in STAGES.values()}
    return [current.get(name, name) for name in names]


def manifest_of(stage: str, store: "Store") -> str:
    """Return the path of a stage's manifest.

    In an old run directory, the manifest has the name that the stage had then.
    """
    path = layout.manifest(stage)
    earlier = layout.manifest(STAGES[stage].key)
    if not store.exists(path) and store.exists(earlier):
        return earlier
    return path


@dataclass(frozen=True)
class StageContext:
    """The arguments that every stage gets."""

    recipe: "Recipe"
    store: "Store"
    session: str
    """The id of this command.

    It is in the names of the command's ledger segments, so that summary.json can count
    the calls of the last run apart from all calls.
    """
    progress: "Progress"
    stage: str = ""
    """The stage to carry out, for a module that carries out several."""
    truth: Truth | None = None
    """Measures the first judge, where the right answers are known: in the embedded world."""


@dataclass(frozen=True)
class StageResult:
    """The result of a stage: the files that count, and its part of summary.json."""

    files: list[str]
    summary: dict[str, Any] = field(default_factory=dict)
