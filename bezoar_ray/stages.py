"""The registry: every stage and every checkpoint, once.

The orchestrator, fingerprints, plan, doctor, capacity check, sweep, serving, report, cards and `--help` read their
lists from here. A new stage is a module with a function `run(context)` and one entry in `STAGES`.
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
"""The checkpoint that training starts from: it holds the tokenizer and the chat template."""


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint that a training stage makes.

    It has the stage's name, or the name of the method that the recipe chooses.
    """

    parent: str
    """The checkpoint that it continues."""
    below: tuple[str, ...]
    """The checkpoints whose adapters add up to it on the base, together with its own."""
    trained: str
    """How it was trained, for its card."""
    colour: str
    """In charts."""
    methods: tuple[str, ...] = ()
    """The methods of the recipe's section, for a checkpoint that is named after one."""


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe."""

    name: str
    label: str
    """Its work in a few words, for `bezoar plan`."""
    module: str
    """The module whose `run(context)` carries it out."""
    reads: tuple[str, ...] = ()
    """Paths in the recipe that enter its fingerprint, beside all that the stages before it read."""
    section: str = ""
    """The recipe's section of a training stage."""
    scheduled: tuple[str, ...] = ()
    """The recipe's sections that say which Ray resources its actors or workers ask for."""
    checkpoint: Checkpoint | None = None
    """The checkpoint of a training stage."""
    first_name: str = ""
    """An earlier name: `--stages` and old run directories use it, and fingerprints keep it."""

    @property
    def checkpoint_names(self) -> tuple[str, ...]:
        """The names that the stage's checkpoint may have."""
        if self.checkpoint is None:
            return ()
        return self.checkpoint.methods or (self.name,)

    @property
    def key(self) -> str:
        """The stage's name in fingerprints and cache files; it never changes."""
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
            trained="{method} on the same pairs, from `hh-sft`",
            colour="#10b981",
            methods=("dpo", "kto", "orpo", "asft"),
        ),
    ),
    Stage(
        name="evaluate",
        label="tasks and questions",
        module="bezoar_ray.evaluate.evaluate_stage",
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
"""By name, in order: each stage reads what the one before it left."""

TOGETHER = {("generate", "filter"): "bezoar_ray.runs.generate_and_filter"}
"""Stages that run as one where both are asked for, and the module that does it."""


def checkpoint_names() -> tuple[str, ...]:
    """All names that a checkpoint may have, in the order of training; the base comes first."""
    return (BASE, *_stage_of_checkpoint())


def stage_of(checkpoint: str) -> Stage:
    """The stage that makes a checkpoint.

    Raises:
        KeyError: no stage makes a checkpoint of that name.
    """
    return _stage_of_checkpoint()[checkpoint]


def checkpoint_of(name: str) -> Checkpoint:
    """The entry of a trained checkpoint, by the checkpoint's name.

    Raises:
        KeyError: no stage makes a checkpoint of that name.
    """
    checkpoint = stage_of(name).checkpoint
    assert checkpoint  # stage_of knows no other stages
    return checkpoint


def adapters_of(name: str) -> tuple[str, ...]:
    """The checkpoints whose adapters add up to a checkpoint on the base."""
    return (*checkpoint_of(name).below, name)


def _stage_of_checkpoint() -> dict[str, Stage]:
    return {name: stage for stage in STAGES.values() for name in stage.checkpoint_names}


def training_stages() -> tuple[str, ...]:
    """The stages that make a checkpoint."""
    return tuple(name for name, stage in STAGES.items() if stage.checkpoint)


def working_stages() -> tuple[str, ...]:
    """All stages but the report, which reads the files of the others."""
    return tuple(name for name in STAGES if name != "report")


def current_names(names: Iterable[str]) -> list[str]:
    """The names of stages, with an earlier name replaced by the present one."""
    present = {stage.first_name: stage.name for stage in STAGES.values()}
    return [present.get(name, name) for name in names]


def manifest_of(stage: str, store: "Store") -> str:
    """The path of a stage's manifest; in an old run directory it has the stage's earlier name."""
    path = layout.manifest(stage)
    earlier = layout.manifest(STAGES[stage].key)
    return path if store.exists(path) or not store.exists(earlier) else earlier


@dataclass(frozen=True)
class StageContext:
    """What every stage is given."""

    recipe: "Recipe"
    store: "Store"
    session: str
    """Id of this command. It names the command's ledger segments, so that `last_run` can be told from the totals."""
    progress: "Progress"
    stage: str = ""
    """The stage to carry out, for a module that carries out several."""
    truth: Truth | None = None
    """Measures the first judge, where the right answers are known: in the embedded world."""


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves: the files that count, and its part of summary.json."""

    files: list[str]
    summary: dict[str, Any] = field(default_factory=dict)
