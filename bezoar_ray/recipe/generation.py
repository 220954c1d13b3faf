"""The sections of generation and filtering."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bezoar_ray.recipe.section import (
    FILES,
    RUNTIME_ONLY,
    Money,
    Positive,
    Section,
    Share,
    packaged_text,
)
from bezoar_ray.schemes import CUSTOM, SCHEMES

Operation = Literal[
    "constraints", "deepen", "concretise", "reasoning", "complicate_input", "breadth"
]


class SchemeSection(Section):
    """The section of a generation scheme."""

    def for_actors(self) -> Any:
        """Return what `run` gets in an actor, which may not see this machine's files."""
        return self

    @abstractmethod
    def max_rows(self, seeds: int | None, open_rows: int) -> int:
        """Return the number of rows that the scheme makes, at most.

        All candidates for an instruction are one row here.

        Args:
            seeds: Rows that the sources of the seeds are limited to; None without a
                limit.
            open_rows: Assumed rows of a FLAN sub-mixture that has no limit.
        """


class Lamini(SchemeSection):
    """LaMini (arXiv 2304.14402): new instructions from examples and topics."""

    calls: Positive = 80
    """Calls that request new instructions. `calls` times `per_call` is the number of
    rows."""
    examples: Positive = 3
    """Seed instructions shown in each call."""
    per_call: Positive = 20
    """Instructions requested in each call. An instruction that the teacher does not
    deliver is a failed row."""
    topics_per_call: Positive = 3
    """Topics named in a topic-guided call."""
    topic_guided: Share = 0.5
    """Share of the calls that are topic-guided. The others are example-guided."""
    topics: Annotated[str | None, FILES] = None
    """File with one topic on each line, to use instead of the packaged list."""

    @property
    def topics_text(self) -> str:
        """The topics, one on each line."""
        return packaged_text("topics.txt", self.topics, "generate.lamini.topics")

    def max_rows(self, seeds: int | None, open_rows: int) -> int:
        """See `SchemeSection`."""
        return self.calls * self.per_call

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields, with the topics themselves instead of their file."""
        return super().fingerprint_fields() | {"topics": self.topics_text}


class EvolInstruct(SchemeSection):
    """Evol-Instruct (arXiv 2304.12244): each seed is rewritten, epoch after epoch."""

    seeds: Positive = 600
    """Seeds to evolve, drawn from `seeds.dolly`. `seeds` times `epochs` is the number
    of rows."""
    epochs: Positive = 4
    """Evolutions of each seed, one after the other. The paper ran 4."""
    operations: Annotated[dict[Operation, float], Field(min_length=1)] = {
        "constraints": 1,
        "deepen": 1,
        "concretise": 1,
        "reasoning": 1,
        "complicate_input": 1,
        "breadth": 1,
    }
    """Relative frequency of each operation. The paper draws them uniformly. Leave an
    operation out to switch it off."""

    def max_rows(self, seeds: int | None, open_rows: int) -> int:
        """See `SchemeSection`."""
        return min(self.seeds, seeds or self.seeds) * self.epochs


class Mixture(Section):
    """How one FLAN sub-mixture is sampled for Orca."""

    rows: int | None = None
    """Rows to draw. All rows where empty."""
    per_task: int | None = None
    """Maximum number of rows of one FLAN task."""
    stratified: bool = False
    """Draw a task uniformly, then one of its queries without replacement, until there
    are enough rows. By default queries are drawn uniformly."""


class Orca(SchemeSection):
    """Orca (arXiv 2306.02707): FLAN queries, each under one of 16 system messages."""

    rows: Positive | None = None
    """Queries to draw from all sub-mixtures together, in turn. All that the mixtures
    allow where empty."""
    mixtures: dict[Literal["CoT", "NIV2", "Flan2021", "T0"], Mixture] = {
        "CoT": Mixture(),
        "NIV2": Mixture(per_task=300),
        "Flan2021": Mixture(stratified=True, per_task=1_000_000),
        "T0": Mixture(stratified=True),
    }
    """How each sub-mixture is sampled. The defaults are those of the paper's table
    3."""

    def max_rows(self, seeds: int | None, open_rows: int) -> int:
        """See `SchemeSection`."""
        drawn = 0
        for mixture in self.mixtures.values():
            drawn += mixture.rows or open_rows
        drawn = min(drawn, seeds or drawn)
        return min(drawn, self.rows or drawn)


@dataclass(frozen=True)
class CustomCode:
    """A custom scheme as the actors get it: with the text of its file, not the path."""

    source: str
    function: str
    """`path.py:name`, as the recipe has it."""
    settings: dict[str, Any]


class CustomScheme(SchemeSection):
    """A scheme of your own: an async function that makes samples from seeds.

    The packaged schemes in `bezoar_ray/generate/` are such functions, too.
    """

    function: str
    """`path.py:name` of `async def name(task, chat, settings)`, an async generator that
    yields samples."""
    seeds: Literal["dolly", "flan"] = "dolly"
    """Kind of seeds that the function starts from, one seed for each task."""
    works: Positive = 100
    """Seeds to draw, which is the number of tasks."""
    rows_per_work: Annotated[Positive, RUNTIME_ONLY] = 1
    """Estimate of the rows that the function makes from one seed. Progress, plan and
    file size depend on it, the result does not."""
    settings: dict[str, Any] = {}
    """Values passed to the function."""

    @property
    def source(self) -> str:
        """Text of the file with the function."""
        return packaged_text("", self.path, "generate.own: function")

    @property
    def path(self) -> str:
        """Path of the file with the function."""
        return self.function.rpartition(":")[0]

    def for_actors(self) -> CustomCode:
        """Return the settings with the text of the file."""
        return CustomCode(self.source, self.function, self.settings)

    def max_rows(self, seeds: int | None, open_rows: int) -> int:
        """See `SchemeSection`."""
        return min(self.works, seeds or self.works) * self.rows_per_work

    def files(self) -> Iterator[str]:
        """The file with the function."""
        yield self.path

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields, with the text of the function's file."""
        return super().fingerprint_fields() | {"source": self.source}

    @model_validator(mode="after")
    def _check_function(self) -> "CustomScheme":
        name = self.function.rpartition(":")[2]
        if not self.path.endswith(".py") or not name.isidentifier():
            raise ValueError(f"expected path.py:function, found {self.function!r}")
        return self


class Generate(Section):
    """The generation schemes. Set a scheme to null to leave it out."""

    lamini: Lamini | None = Lamini()
    evol_instruct: EvolInstruct | None = EvolInstruct()
    orca: Orca | None = Orca()
    candidates: Positive = 1
    """Answers to each instruction. All of them are judged, and the best rated one is
    kept (rejection sampling). Generation and judging cost this many times as much."""
    own: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], CustomScheme] = {}
    """Custom schemes by name."""
    budget_usd: Annotated[Money | None, RUNTIME_ONLY] = None
    """Maximum dollars that the teachers' calls may cost. The run stops before it would
    exceed them."""

    def section(self, scheme: str) -> Any:
        """The section of a scheme; None where the recipe leaves it out."""
        if scheme in self.own:
            return self.own[scheme]
        return getattr(self, scheme)


class Meaning(Section):
    """Duplicates in meaning, found with a sentence-embedding model."""

    model: Annotated[str, FILES]
    """Hugging Face name or local folder of a model that sentence-transformers can
    load."""
    revision: str | None = None
    """Commit of a Hugging Face model. A branch or tag is resolved to its commit when a
    run begins."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Cosine similarity from which two instructions count as duplicates. Lower it to
    reject more."""


OWN_DECISIONS = "review"
"""Stands for the decisions of the run directory itself in `filter.decisions`."""


class Filter(Section):
    """The filter: free gates first, then the judges."""

    accept_rating: Annotated[float, Field(ge=1, le=5)] = 4.0
    """Lowest rating, from 1 to 5, at which a judge accepts a row."""
    combine: Literal["first", "all", "majority", "mean"] = "first"
    """How the judges' ratings become a decision: the first judge decides, all must
    accept, more than half must accept, or the mean rating counts."""
    rubrics: Annotated[dict[str, str], FILES] = {}
    """Text files with a rubric, by scheme, to use instead of the packaged rubrics."""
    cap: dict[str, Positive] = {}
    """Maximum number of accepted rows, by scheme. The best rated rows are kept, with
    instructions as diverse as possible."""
    gates: tuple[Literal["secrets", "personal_data"], ...] = ()
    """Extra gates. `secrets` rejects rows with a key, token or password.
    `personal_data` rejects rows with an e-mail address, an IP address, or a telephone,
    social security or credit card number."""
    meaning: Meaning | None = None
    """Also reject an instruction that asks the same as an accepted one in other
    words."""
    decontaminate: bool = True
    """Reject rows that share a run of words with MT-Bench's questions or the recipe's
    lm-eval tasks."""
    budget_usd: Annotated[Money | None, RUNTIME_ONLY] = None
    """Maximum dollars that the judges' calls may cost. The run stops before it would
    exceed them."""
    judge: bool = True
    """Whether judges rate the rows. With `false`, all rows that pass the gates are
    accepted, for ablations."""
    groups: Annotated[str | None, FILES] = None
    """Word list of groups of people, for the section on bias in the report: a YAML file
    in the form of `bezoar_ray/recipes/groups/english.yaml`, or `tiny` for that of the
    embedded world. The packaged English list where empty."""
    counterfactuals: Annotated[int, Field(ge=0)] = 0
    """Number of rows that the judges rate a second time, with one group of people in
    the place of another, to measure whether the rating changes. Each costs a call to
    each judge. With any, the word list decides the result of the filter as well."""
    decisions: Annotated[str | None, FILES] = None
    """People's decisions, which override gates and judges: `review` for those of
    `bezoar review` in the run directory, or a file or glob of such lines of another
    one."""

    def group_terms(self) -> str:
        """The text of the word list of groups of people."""
        is_tiny = self.groups == "tiny"
        return packaged_text(
            f"groups/{'tiny' if is_tiny else 'english'}.yaml",
            None if is_tiny else self.groups,
            "filter.groups",
        )

    def rubric(self, scheme: str) -> str:
        """The rubric by which judges rate the rows of a scheme."""
        packaged = scheme if scheme in SCHEMES else CUSTOM
        return packaged_text(
            f"rubrics/{packaged}.txt",
            self.rubrics.get(scheme),
            f"filter.rubrics.{scheme}",
        )

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields, with the rubrics themselves instead of their files."""
        schemes = (*SCHEMES, CUSTOM, *self.rubrics)
        rubrics = {scheme: self.rubric(scheme) for scheme in schemes}
        values = super().fingerprint_fields() | {"rubrics": rubrics}
        del values["groups"]
        if self.counterfactuals:
            values["groups"] = self.group_terms()
        else:
            # The word list changes the report alone, which is always written anew. A
            # run directory made before these fields keeps its fingerprint.
            del values["counterfactuals"]
        if self.decisions is None:
            # A run directory made before this field existed keeps its fingerprint.
            del values["decisions"]
        elif self.decisions == OWN_DECISIONS:
            # Also where a folder of this name is at hand.
            values["decisions"] = OWN_DECISIONS
        return values


class Review(Section):
    """What people must do before training begins. Without it, they need do nothing."""

    required: Annotated[int, Field(ge=0), RUNTIME_ONLY] = 0
    """Number of rows that people must have accepted or rejected with
    `bezoar review`."""
    approve: Annotated[bool, RUNTIME_ONLY] = False
    """Whether a person must approve the rows that the filter has left, by
    `bezoar review DIR --approve NAME`. If the filter runs again with another result,
    its rows need another approval."""
