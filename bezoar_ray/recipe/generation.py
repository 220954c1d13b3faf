"""Generation and filtering: the schemes and what is accepted of their rows."""

from collections.abc import Iterator
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


class Lamini(Section):
    """LaMini (arXiv 2304.14402): new instructions from examples and topics, then their answers."""

    calls: Positive = 80
    """Calls that ask for new instructions."""
    examples: Positive = 3
    """Seed instructions shown in each call."""
    per_call: Positive = 20
    """Instructions asked for in each call; one not delivered is a failed row."""
    topics_per_call: Positive = 3
    """Topics named in a topic-guided call."""
    topic_guided: Share = 0.5
    """Share of the calls that are topic-guided; the others are example-guided."""
    topics: Annotated[str | None, FILES] = None
    """File with one topic a line, in place of the packaged list."""

    @property
    def topics_text(self) -> str:
        """The topics, one a line."""
        return packaged_text("topics.txt", self.topics, "generate.lamini.topics")

    def fingerprint_fields(self) -> dict[str, object]:
        """With the topics themselves in place of their file."""
        return super().fingerprint_fields() | {"topics": self.topics_text}


class EvolInstruct(Section):
    """Evol-Instruct (arXiv 2304.12244): each seed is rewritten, epoch after epoch."""

    seeds: Positive = 600
    """Seeds that are evolved, drawn from `seeds.dolly`."""
    epochs: Positive = 4
    """Evolutions of each seed, one after the other."""
    operations: Annotated[dict[Operation, float], Field(min_length=1)] = {
        "constraints": 1,
        "deepen": 1,
        "concretise": 1,
        "reasoning": 1,
        "complicate_input": 1,
        "breadth": 1,
    }
    """Weight of each operation; the paper draws them uniformly."""


class Mixture(Section):
    """How one FLAN sub-mixture is sampled for Orca."""

    rows: int | None = None
    """Rows drawn; all where empty."""
    per_task: int | None = None
    """At most so many rows of a task."""
    stratified: bool = False
    """Pick a task uniformly, then a query from it without replacement, until enough are drawn."""


class Orca(Section):
    """Orca (arXiv 2306.02707): FLAN queries, each answered under one of 16 system messages."""

    rows: Positive | None = None
    """Queries drawn over all sub-mixtures, in turn; all that the mixtures allow where empty."""
    mixtures: dict[Literal["CoT", "NIV2", "Flan2021", "T0"], Mixture] = {
        "CoT": Mixture(),
        "NIV2": Mixture(per_task=300),
        "Flan2021": Mixture(stratified=True, per_task=1_000_000),
        "T0": Mixture(stratified=True),
    }
    """Sampling by sub-mixture, as in the paper's table 3."""


class CustomScheme(Section):
    """A scheme of your own: an async function that makes samples of seeds, as those in `bezoar_ray/generate/` do."""

    function: str
    """`path.py:name` of `async def name(work, chat, settings)`, a generator of samples."""
    seeds: Literal["dolly", "flan"] = "dolly"
    """The seeds that it starts from, one a work."""
    works: Positive = 100
    """Seeds that are drawn."""
    rows_per_work: Annotated[Positive, RUNTIME_ONLY] = 1
    """Rows that it makes of a seed, about: progress, plan and the size of files depend on it, not the result."""
    settings: dict[str, Any] = {}
    """Handed to the function."""

    @property
    def source(self) -> str:
        """The text of the file that holds the function."""
        return packaged_text("", self.path, "generate.own: function")

    @property
    def path(self) -> str:
        """The file that holds the function."""
        return self.function.rpartition(":")[0]

    def files(self) -> Iterator[str]:
        """The file that holds the function."""
        yield self.path

    def fingerprint_fields(self) -> dict[str, object]:
        """With the code itself."""
        return super().fingerprint_fields() | {"source": self.source}

    @model_validator(mode="after")
    def _names_a_function(self) -> "CustomScheme":
        name = self.function.rpartition(":")[2]
        if not self.path.endswith(".py") or not name.isidentifier():
            raise ValueError(f"expected path.py:function, found {self.function!r}")
        return self


class Generate(Section):
    """The schemes; one that is null is left out."""

    lamini: Lamini | None = Lamini()
    evol_instruct: EvolInstruct | None = EvolInstruct()
    orca: Orca | None = Orca()
    candidates: Positive = 1
    """Answers to each instruction, each a row that is judged; the best rated one stays (rejection sampling)."""
    own: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], CustomScheme] = {}
    """Schemes of your own, by name."""
    budget_usd: Annotated[Money | None, RUNTIME_ONLY] = None
    """Dollars that the teacher's calls may cost."""

    def section(self, scheme: str) -> Any:
        """The section of a scheme; None where the recipe leaves it out."""
        return self.own[scheme] if scheme in self.own else getattr(self, scheme)


class Meaning(Section):
    """Duplicates by meaning: a sentence-embedding model and how near is too near."""

    model: Annotated[str, FILES]
    """Hugging Face name or local folder of a model that sentence-transformers can load."""
    revision: str | None = None
    """Commit of a Hugging Face model."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Cosine similarity from which two instructions ask the same."""


class Filter(Section):
    """Free gates, then the judges."""

    accept_rating: Annotated[float, Field(ge=1, le=5)] = 4.0
    """Lowest rating, from 1 to 5, that a judge accepts."""
    combine: Literal["first", "all", "majority", "mean"] = "first"
    """Who decides: the first judge, all of them, more than half, or their mean rating."""
    rubrics: Annotated[dict[str, str], FILES] = {}
    """A text file by scheme in place of the packaged rubric."""
    cap: dict[str, Positive] = {}
    """At most so many accepted rows, by scheme: the best rated of instructions that are as diverse as can be."""
    gates: tuple[Literal["secrets", "personal_data"], ...] = ()
    """Further gates: rows that hold keys and tokens, or what leads to a person."""
    meaning: Meaning | None = None
    """Reject instructions that ask what an accepted one asks in other words, too."""
    decontaminate: bool = True
    """Reject rows that share a run of words with MT-Bench's questions or the recipe's lm-eval tasks."""
    budget_usd: Annotated[Money | None, RUNTIME_ONLY] = None
    """Dollars that the judges' calls may cost."""
    judge: bool = True
    """Whether judges are asked at all; without them, what passes the gates is accepted (for ablations)."""

    def rubric(self, scheme: str) -> str:
        """What a judge is told to look for in a scheme's rows."""
        packaged = scheme if scheme in SCHEMES else CUSTOM
        return packaged_text(
            f"rubrics/{packaged}.txt",
            self.rubrics.get(scheme),
            f"filter.rubrics.{scheme}",
        )

    def fingerprint_fields(self) -> dict[str, object]:
        """With the rubrics themselves in place of their files."""
        return super().fingerprint_fields() | {
            "rubrics": {
                scheme: self.rubric(scheme)
                for scheme in (*SCHEMES, CUSTOM, *self.rubrics)
            }
        }
