"""A whole recipe, and how it is read from YAML.

Every error names the file, the field, the value found and the remedy.
"""

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from bezoar_ray import layout
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe.evaluation import Evaluate, Serve
from bezoar_ray.recipe.generation import Filter, Generate, Review
from bezoar_ray.recipe.model_sections import (
    Judge,
    RowJudge,
    Seeds,
    Teacher,
    check_distinct,
)
from bezoar_ray.recipe.section import (
    FILES,
    RUNTIME_ONLY,
    Money,
    OneOrMore,
    SchedulingSection,
    Section,
    read_text,
)
from bezoar_ray.recipe.training import Align, Base, HhSft, Rm, Sft, Training
from bezoar_ray.schemes import SCHEMES, Scheme, SeedKind, custom_scheme
from bezoar_ray.stages import STAGES, stages_before, training_stages

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    # Not imported at run time: the store needs pyarrow, and a plan does without it.
    from bezoar_ray.store import Store

# Names under which a recipe may have a single section instead of a list.
_ALIASES = {
    "teacher": "teachers",
    "judge": "judges",
}
_MEANT = {
    "dpo": "align",
    "hh-sft": "hh_sft",
    "judge": "judges",
}  # sections that a stage's name does not say
_STAGES_OF_SCHEMES = ("generate", "filter")
"""Stages that have nothing to do in a recipe without a scheme."""
_EXPECTED = {
    "tuple_type": "expected a list, as in [a, b]",
    "model_type": "expected a section with keys",
    "dict_type": "expected a section with keys",
}


class Recipe(Section):
    """One whole recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run. By default the run directory is `runs/<name>`."""
    seed: int = 0
    """Seed of every random draw. It is part of each row's id, so a change makes new
    rows."""
    chat_template: Annotated[str, FILES] = "alpaca"
    """Jinja file with generation marks, or the packaged `alpaca`. Training, serving and
    evaluation all use it."""
    teachers: Annotated[
        tuple[Teacher, ...],
        OneOrMore,
        Field(min_length=1, validation_alias=AliasChoices("teachers", "teacher")),
    ]
    """Models that write the synthetic rows, each a share by its weight. A single one
    may be given as `teacher`."""
    judges: Annotated[tuple[RowJudge, ...], Field(min_length=1)]
    """Models that rate the rows. `filter.combine` says how their ratings become a
    decision."""
    base: Base
    """The model that is trained."""
    seeds: Seeds
    budget_usd: Annotated[Money | None, RUNTIME_ONLY] = None
    """Maximum dollars that all calls of the run directory may cost. Sections of stages
    can have a budget of their own."""
    generate: Generate = Generate()
    filter: Filter = Filter()
    review: Review | None = None
    sft: Sft = Sft()
    hh_sft: HhSft = HhSft()
    rm: Rm | None = None
    align: Align = Align()
    serve: Serve = Serve()
    evaluate: Evaluate = Evaluate()

    @property
    def schemes(self) -> tuple[str, ...]:
        """Names of the schemes that the recipe uses, custom ones last."""
        packaged = [name for name in SCHEMES if getattr(self.generate, name)]
        return (*packaged, *self.generate.own)

    def scheme(self, name: str) -> Scheme:
        """The scheme of a name, packaged or custom."""
        return SCHEMES.get(name) or custom_scheme(name, self.generate.own[name].seeds)

    @property
    def seeds_in_use(self) -> tuple[SeedKind, ...]:
        """The fields of `seeds` that the recipe's schemes start from, sorted."""
        return tuple(sorted({self.scheme(name).seeds for name in self.schemes}))

    def rows_per_task(self, scheme: str) -> int:
        """Number of instructions that one task of a scheme gives."""
        field = self.scheme(scheme).rows_field
        if not field:
            return 1
        return getattr(self.generate.section(scheme), field)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that the recipe has.

        These are the ones whose section is not null. Without a scheme, there are no
        rows to generate and to filter.
        """
        names = []
        for name, stage in STAGES.items():
            has_section = not stage.section or getattr(self, stage.section) is not None
            is_idle = name in _STAGES_OF_SCHEMES and not self.schemes
            if has_section and not is_idle:
                names.append(name)
        return tuple(names)

    def stages_before(self, stage: str) -> tuple[str, ...]:
        """Names of the earlier stages whose results a stage uses, in order.

        align uses the reward model for the methods `ppo` and `steer` only.
        """
        is_training = stage in training_stages() and stage in self.stages
        method = self.checkpoint(stage) if is_training else ""
        return stages_before(stage, method)

    @property
    def sft_order(self) -> tuple[str, ...]:
        """Names of the data sets of sft, in the order of training.

        Custom data sets that `sft.order` does not name come last.
        """
        names = (*self.sft.order, *self.generate.own, *self.sft.data)
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _check_scheme_names(self) -> "Recipe":
        taken = set(SCHEMES)
        custom_names = [("generate.own", name) for name in self.generate.own]
        custom_names += [("sft.data", name) for name in self.sft.data]
        for field, name in custom_names:
            if name in taken:
                raise ValueError(
                    f"{field}.{name}: the name of another scheme; choose another"
                )
            taken.add(name)

        schemes = [*SCHEMES, *self.generate.own]
        _check_known("sft.order", self.sft.order, [*schemes, *self.sft.data])
        _check_known("filter.rubrics", self.filter.rubrics, schemes)
        _check_known("filter.cap", self.filter.cap, schemes)
        return self

    @model_validator(mode="after")
    def _check_reward_model(self) -> "Recipe":
        if self.rm is not None:
            return self
        if self.align.method == "ppo":
            raise ValueError(
                "align.method ppo learns from the score of a reward model, and the "
                "recipe has none. Add a section `rm`, with seeds.helpsteer or "
                "seeds.preferences, or choose another method"
            )
        if self.align.method == "steer":
            raise ValueError(
                "align.method steer learns from rated answers and the ratings of a "
                "reward model, and the recipe has none. Add a section `rm`, with "
                "seeds.helpsteer, or choose another method"
            )
        return self

    @model_validator(mode="after")
    def _check_rollout_engine(self) -> "Recipe":
        uses_vllm = self.align.method == "ppo" and self.align.ppo.engine == "vllm"
        if uses_vllm and self.hh_sft.lora.dora:
            raise ValueError(
                "align.ppo.engine vllm: vLLM cannot run the policy's adapter, since "
                "hh_sft.lora.dora is true. Set it to false, or engine to transformers"
            )
        return self

    @model_validator(mode="after")
    def _check_rated_answers(self) -> "Recipe":
        if self.align.method == "steer" and not self.seeds.helpsteer:
            raise ValueError(
                "align.method steer begins with rated answers, and seeds.helpsteer is "
                "empty. Give it a source, such as [{source: tiny}], or choose another "
                "method"
            )
        return self

    @field_validator("judges")
    @classmethod
    def _check_distinct_judges(
        cls, judges: tuple[RowJudge, ...]
    ) -> tuple[RowJudge, ...]:
        return check_distinct(judges)

    @model_validator(mode="after")
    def _check_mt_bench_judge(self) -> "Recipe":
        bench = self.evaluate.mt_bench
        if bench and not bench.judges and self.judges[0].reward:
            raise ValueError(
                "evaluate.mt_bench.judges: missing. The recipe's first judge is a "
                "reward model, which cannot grade MT-Bench. Name a judge there, or set "
                "evaluate.mt_bench: null"
            )
        return self

    def training(self, stage: str) -> Training:
        """The section of a training stage."""
        return getattr(self, STAGES[stage].section)

    def checkpoint(self, stage: str) -> str:
        """Name of a training stage's checkpoint: its section's method, or the stage."""
        return getattr(self.training(stage), "method", stage)

    @property
    def trained(self) -> tuple[str, ...]:
        """The training stages that leave a checkpoint.

        align leaves none where its method is `none`.
        """
        return tuple(
            stage
            for stage in training_stages()
            if stage in self.stages and self.training(stage).is_trained
        )

    def scheduled(self, stage: str) -> tuple[SchedulingSection, ...]:
        """The sections that request a stage's actors or workers."""
        evaluate = self.evaluate
        if stage == "filter" and not self.filter.judge:
            return ()
        benchmarks = (evaluate.harness, evaluate.mt_bench, evaluate.reward_bench)
        if stage == "evaluate" and not any(benchmarks):
            return ()
        if STAGES[stage].checkpoint and stage not in self.trained:
            return ()
        sections: list[SchedulingSection] = []
        for name in STAGES[stage].scheduled:
            section = getattr(self, name)
            if isinstance(section, tuple):
                sections.extend(section)
            else:
                sections.append(section)
        if stage == "align":
            sections.extend(self.align.samplers)
        return tuple(sections)

    @property
    def mt_bench_judges(self) -> tuple[Judge, ...]:
        """The judges of MT-Bench answers: its own, or the recipe's first judge.

        They are called live, even where the recipe's judge uses the batch interface:
        each answer is judged as soon as it is there.
        """
        bench = self.evaluate.mt_bench
        judges: tuple[Judge, ...] = self.judges[:1]
        if bench and bench.judges:
            judges = bench.judges
        return tuple(judge.model_copy(update={"mode": "live"}) for judge in judges)

    @property
    def template(self) -> str:
        """Text of the chat template."""
        recipes = resources.files("bezoar_ray") / "recipes"
        packaged = recipes / f"{self.chat_template}.jinja"
        if packaged.is_file():
            return packaged.read_text()
        return read_text(self.chat_template, "chat_template")


def recipe_names() -> list[str]:
    """Names of the packaged recipes, sorted."""
    names = []
    for file in (resources.files("bezoar_ray") / "recipes").iterdir():
        if file.name.endswith(".yaml"):
            names.append(file.name.removesuffix(".yaml"))
    return sorted(names)


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Load and check a recipe.

    Args:
        name: a packaged name, or the path of a YAML file.
        overrides: `key.path=value`, where values are YAML.

    Raises:
        RecipeError: names the file, the field, the value found and the remedy.
    """
    packaged = resources.files("bezoar_ray") / "recipes" / f"{name}.yaml"
    if packaged.is_file():
        text = packaged.read_text()
    elif Path(name).is_file():
        text = read_text(name, "recipe")
    else:
        raise RecipeError(
            f"no recipe {name!r}: give the path of a YAML file, or one of "
            f"{', '.join(recipe_names())}"
        )
    try:
        # safe_load, since other loaders make any Python object that a tag names.
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{name}: not a recipe: expected sections such as `teacher:` "
            f"(found {tree!r})"
        )
    for override in overrides:
        _apply_override(tree, override)
    return parse_recipe(tree, name)


def recipe_of(store: "Store", overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe that made a run directory, with overrides as in `load_recipe`.

    Raises:
        RecipeError: the folder is not a run directory.
    """
    if not store.exists(layout.RECIPE):
        raise RecipeError(
            f"{store.root} is not a run directory: it has no recipe.yaml. "
            f"`bezoar run RECIPE --run-dir {store.root}` makes one"
        )
    return load_recipe(str(store.path(layout.RECIPE)), overrides)


def parse_recipe(tree: object, origin: str) -> Recipe:
    """Check a tree of plain values and make it a recipe.

    Args:
        tree: what the YAML file holds.
        origin: the file, for errors.

    Raises:
        RecipeError: has one line for each fault.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [f"{origin}: {_explain(fault)}" for fault in error.errors()]
        raise RecipeError("\n".join(lines)) from error


def _check_known(field: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"{field}: no scheme {name!r}; there are {', '.join(known)}"
            )


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override!r}: expected key.path=value")
    *parents, last = path.split(".")
    _rename_teachers(tree, path.split(".")[0])
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"--set {path}: {text!r} is not valid YAML: {error}"
        ) from error
    node: Any = tree
    for key in parents:
        node = _child(node, key, path)
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    else:
        node[last] = value


def _rename_teachers(tree: dict[str, Any], name: str) -> None:
    """Give the teachers the name that an override uses: `teacher` or `teachers`."""
    teachers = tree.get("teachers")
    if name == "teachers" and "teacher" in tree:
        tree["teachers"] = [tree.pop("teacher")]
    elif name == "teacher" and isinstance(teachers, list) and len(teachers) == 1:
        tree["teacher"] = teachers[0]
        del tree["teachers"]


def _child(tree: Any, key: str, path: str) -> Any:
    """The value below a key; an empty section is added where there is none."""
    if isinstance(tree, list):
        return tree[_index(tree, key, path)]
    if tree.get(key) is None:
        tree[key] = {}
    if not isinstance(tree[key], dict | list):
        raise RecipeError(f"--set {path}: {key!r} is a value, not a section")
    return tree[key]


def _index(items: list[object], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise RecipeError(
            f"--set {path}: {key!r} is not an index from 0 to {len(items) - 1}"
        )
    return int(key)


def _explain(error: "ErrorDetails") -> str:
    """Describe one of pydantic's errors in one line: field, value and remedy."""
    location = error["loc"]
    field = ".".join(map(str, location)) or "recipe"
    for alias in _ALIASES:
        # A section given alone is a list of one, so pydantic adds an index.
        field = field.replace(f"{alias}.0.", f"{alias}.")
    if error["type"] == "extra_forbidden":
        return f"{field}: unknown key. {_suggest_key(location)}"
    if error["type"] == "missing":
        return f"{field}: missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    message = _EXPECTED.get(error["type"], message)
    value = error["input"]
    if isinstance(value, dict | BaseModel):
        return f"{field}: {message}"
    return f"{field}: {message} (found {value!r})"


def _suggest_key(location: tuple[int | str, ...]) -> str:
    """Suggest a known key for an unknown one, or list the known keys."""
    unknown = str(location[-1])
    known = _known_keys(location[:-1])
    meant = _MEANT.get(unknown)
    if meant in known:
        return f"Did you mean {meant!r}?"
    near = difflib.get_close_matches(unknown, known, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known keys: {', '.join(known)}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at a location in a recipe."""
    section: type[Section] = Recipe
    for step in location:
        if not isinstance(step, str):
            continue  # an index in a list of sections
        name = _ALIASES.get(step, step)
        if name in section.model_fields:
            annotation = section.model_fields[name].annotation
            section = _section_in(annotation) or section
    return list(section.model_fields)


def _section_in(annotation: object) -> type[Section] | None:
    """The section class that an annotation such as `tuple[Judge, ...]` mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in get_args(annotation):
        section = _section_in(argument)
        if section:
            return section
    return None
