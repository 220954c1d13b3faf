"""A whole recipe, and how it is read from YAML: every fault is named with its file, field, value and remedy."""

import difflib
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
from bezoar_ray.recipe.generation import Filter, Generate
from bezoar_ray.recipe.model_sections import Judge, Seeds, Teacher, told_apart
from bezoar_ray.recipe.section import (
    FILES,
    RUNTIME_ONLY,
    Money,
    OneOrMore,
    SchedulingSection,
    Section,
)
from bezoar_ray.recipe.training import Align, Base, HhSft, Sft, Training
from bezoar_ray.schemes import SCHEMES, Scheme, SeedKind, custom
from bezoar_ray.stages import STAGES, training_stages

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from bezoar_ray.store import Store  # a plan does without it

_ALIASES = {
    "teacher": "teachers",
    "judge": "judges",
}  # what a single section may stand under
_MEANT = {
    "dpo": "align",
    "hh-sft": "hh_sft",
    "judge": "judges",
}  # sections that a stage's name does not say
_EXPECTED = {
    "tuple_type": "expected a list, as in [a, b]",
    "model_type": "expected a section with keys",
    "dict_type": "expected a section with keys",
}


class Recipe(Section):
    """One whole recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run: it goes to `runs/<name>` by default."""
    seed: int = 0
    """Seed of every draw; part of each row's id."""
    chat_template: Annotated[str, FILES] = "alpaca"
    """Jinja file with generation marks, or the packaged `alpaca`; used alike by training, serving and evaluation."""
    teachers: Annotated[
        tuple[Teacher, ...],
        OneOrMore,
        Field(min_length=1, validation_alias=AliasChoices("teachers", "teacher")),
    ]
    """Write the synthetic rows, each a share by its weight; a single one may stand under `teacher`."""
    judges: Annotated[tuple[Judge, ...], Field(min_length=1)]
    """Rate the rows in place of people; `filter.combine` says who decides."""
    base: Base
    """The model that is trained."""
    seeds: Seeds
    budget_usd: Annotated[Money | None, RUNTIME_ONLY] = None
    """Dollars that all calls of the run directory may cost; the sections of stages take one of their own, too."""
    generate: Generate = Generate()
    filter: Filter = Filter()
    sft: Sft = Sft()
    hh_sft: HhSft = HhSft()
    align: Align = Align()
    serve: Serve = Serve()
    evaluate: Evaluate = Evaluate()

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that are not left out."""
        return (
            *(scheme for scheme in SCHEMES if getattr(self.generate, scheme)),
            *self.generate.own,
        )

    def scheme(self, name: str) -> Scheme:
        """One of its schemes; a custom one is the same kind of object."""
        return SCHEMES.get(name) or custom(name, self.generate.own[name].seeds)

    @property
    def seeds_in_use(self) -> tuple[SeedKind, ...]:
        """The fields of `seeds` that its schemes start from, sorted."""
        return tuple(sorted({self.scheme(name).seeds for name in self.schemes}))

    def rows_per_task(self, scheme: str) -> int:
        """How many instructions one task of a scheme gives."""
        field = self.scheme(scheme).rows_field
        return getattr(self.generate.section(scheme), field) if field else 1

    @property
    def sft_order(self) -> tuple[str, ...]:
        """The data sets in the order of training: own ones that `sft.order` does not name come last."""
        return tuple(
            dict.fromkeys((*self.sft.order, *self.generate.own, *self.sft.data))
        )

    @model_validator(mode="after")
    def _knows_its_schemes(self) -> "Recipe":
        schemes = [*SCHEMES, *self.generate.own]
        trained = [*schemes, *self.sft.data]
        if taken := next(
            (name for n, name in enumerate(trained) if name in trained[:n]), None
        ):
            field = "sft.data" if taken in self.sft.data else "generate.own"
            raise ValueError(
                f"{field}.{taken}: the name of another scheme; choose another"
            )
        for field, names, known in (
            ("sft.order", self.sft.order, trained),
            ("filter.rubrics", self.filter.rubrics, schemes),
            ("filter.cap", self.filter.cap, schemes),
        ):
            if unknown := next((name for name in names if name not in known), None):
                raise ValueError(
                    f"{field}: no scheme {unknown!r}; there are {', '.join(known)}"
                )
        return self

    @field_validator("judges")
    @classmethod
    def _tells_its_judges_apart(cls, judges: tuple[Judge, ...]) -> tuple[Judge, ...]:
        return told_apart(judges)

    def training(self, stage: str) -> Training:
        """The section of a training stage."""
        return getattr(self, STAGES[stage].section)

    def checkpoint(self, stage: str) -> str:
        """The name of a training stage's checkpoint: the section's method, or the stage's name."""
        return getattr(self.training(stage), "method", stage)

    @property
    def trained(self) -> tuple[str, ...]:
        """The training stages that leave a checkpoint: align does not where its method is none."""
        return tuple(
            stage for stage in training_stages() if self.training(stage).is_trained
        )

    def scheduled(self, stage: str) -> tuple[SchedulingSection, ...]:
        """The sections that ask for a stage's actors or workers."""
        if stage == "filter" and not self.filter.judge:
            return ()
        if stage == "evaluate" and not (
            self.evaluate.harness or self.evaluate.mt_bench
        ):
            return ()
        if STAGES[stage].checkpoint and stage not in self.trained:
            return ()
        found: list[SchedulingSection] = []
        for name in STAGES[stage].scheduled:
            section = getattr(self, name)
            found += section if isinstance(section, tuple) else [section]
        return tuple(found)

    @property
    def mt_bench_judges(self) -> tuple[Judge, ...]:
        """The judges of MT-Bench answers: asked live, as an answer is judged as soon as it is there."""
        judges = (
            self.evaluate.mt_bench and self.evaluate.mt_bench.judges
        ) or self.judges[:1]
        return tuple(judge.model_copy(update={"mode": "live"}) for judge in judges)

    @property
    def template(self) -> str:
        """The text of the chat template."""
        packaged = (
            resources.files("bezoar_ray") / "recipes" / f"{self.chat_template}.jinja"
        )
        return (
            packaged.read_text()
            if packaged.is_file()
            else _read(self.chat_template, "chat_template")
        )


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in (resources.files("bezoar_ray") / "recipes").iterdir()
        if p.name.endswith(".yaml")
    )


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe of a packaged name or a path, with `key.path=value` overrides (values are YAML).

    Raises:
        RecipeError: names the file, the field, the value found and what to do.
    """
    packaged = resources.files("bezoar_ray") / "recipes" / f"{name}.yaml"
    if not packaged.is_file() and not Path(name).is_file():
        raise RecipeError(
            f"no recipe {name!r}: give a path to a YAML file, or one of {', '.join(recipe_names())}"
        )
    try:
        tree = yaml.safe_load(
            packaged.read_text() if packaged.is_file() else _read(name, "recipe")
        )
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{name}: holds no recipe; expected sections such as `teacher:` (found {tree!r})"
        )
    for override in overrides:
        _set(tree, override)
    return parse_recipe(tree, name)


def recipe_of(store: "Store", overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe that a run directory was made by, with overrides as of `load_recipe`.

    Raises:
        RecipeError: the folder is no run directory.
    """
    if not store.exists(layout.RECIPE):
        raise RecipeError(
            f"{store.root} is no run directory: it holds no recipe.yaml. "
            f"`bezoar run RECIPE --run-dir {store.root}` makes one"
        )
    return load_recipe(str(store.path(layout.RECIPE)), overrides)


def parse_recipe(tree: object, origin: str) -> Recipe:
    """A checked recipe from a tree of plain values; `origin` is named in errors."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(f"{origin}: {_explain(e)}" for e in error.errors())
        ) from error


def _read(path: str, field: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise RecipeError(f"{field}: cannot read {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{field}: {path!r} is no UTF-8 text: {error.reason} at byte {error.start}"
        ) from error


def _set(tree: dict[str, Any], override: str) -> None:
    path, found, value = override.partition("=")
    if not found:
        raise RecipeError(f"--set {override!r}: expected key.path=value")
    *parents, last = path.split(".")
    _teachers_under(tree, path.split(".")[0])
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"--set {path}: {value!r} is not valid YAML: {error}"
        ) from error
    for key in parents:
        tree = _child(tree, key, path)
    if isinstance(tree, list):
        tree[_index(tree, last, path)] = parsed
    else:
        tree[last] = parsed


def _teachers_under(tree: dict[str, Any], name: str) -> None:
    """Have the teachers stand under the name by which an override calls them: `teacher`, or `teachers`."""
    if name == "teachers" and "teacher" in tree:
        tree["teachers"] = [tree.pop("teacher")]
    elif (
        name == "teacher"
        and isinstance(tree.get("teachers"), list)
        and len(tree["teachers"]) == 1
    ):
        (tree["teacher"],) = tree.pop("teachers")


def _child(tree: Any, key: str, path: str) -> Any:
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
    """One line for one fault: where, what was found, what to do."""
    where = ".".join(map(str, error["loc"])) or "recipe"
    for alone in _ALIASES:
        where = where.replace(f"{alone}.0.", f"{alone}.")
    if error["type"] == "extra_forbidden":
        known = _keys_at(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        if (meant := _MEANT.get(str(error["loc"][-1]))) in known:
            near = [meant]
        return f"{where}: unknown key. " + (
            f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}"
        )
    if error["type"] == "missing":
        return f"{where}: missing; add it"
    found = (
        ""
        if isinstance(error["input"], dict | BaseModel)
        else f" (found {error['input']!r})"
    )
    return f"{where}: {_EXPECTED.get(error['type']) or error['msg'].removeprefix('Value error, ')}{found}"


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    part: Any = Recipe
    for step in (_ALIASES.get(name, name) for name in loc if isinstance(name, str)):
        if step in part.model_fields:
            part = _part_in(part.model_fields[step].annotation) or part
    return list(part.model_fields)


def _part_in(annotation: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(
        (found for item in get_args(annotation) if (found := _part_in(item))), None
    )
