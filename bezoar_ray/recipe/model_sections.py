"""The models and the rows that a recipe starts from."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from bezoar_ray.recipe.section import (
    FILES,
    RUNTIME_ONLY,
    Engine,
    NotNegative,
    Positive,
    PositiveRate,
    SchedulingSection,
    Section,
    check_parallel,
    decisive,
)

COMMIT = re.compile("[0-9a-f]{7,64}")
_BATCH_SHARE = (
    0.5  # of a live call's price, as OpenAI and those who copy its interface have it
)


class Prices(Section):
    """Dollars per million tokens."""

    input: float = 0.0
    """Dollars per million prompt tokens."""
    output: float = 0.0
    """Dollars per million completion tokens."""


class Weights(Section):
    """Which of a model's weights are loaded, and how far they are trusted."""

    revision: str | None = None
    """Commit of a Hugging Face model; a branch or tag becomes the commit that it stands for when a run begins."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only with a pinned revision."""
    if TYPE_CHECKING:
        model: str  # every subclass has it, each with words of its own
    pickled_weights: Annotated[bool, RUNTIME_ONLY] = False
    """Load weights from .bin and .pt files, too: they are pickled, and can run code. Without it, safetensors alone."""

    @model_validator(mode="after")
    def _pinned_code(self) -> "Weights":
        if self.trust_remote_code and not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"trust_remote_code of {self.model!r} needs `revision`: pin the commit whose code you read"
            )
        return self


class ModelSection(Weights, SchedulingSection):
    """A model that is talked to: teacher or judge."""

    model: Annotated[str, FILES]
    """Hugging Face name, local folder, name at the endpoint, or one of the embedded `tiny-*` models."""
    license: str = "unknown"
    """Licence or terms of use that bind what the model writes; decides whether the result may be sold."""
    temperature: NotNegative = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling mass."""
    max_tokens: Positive = 512
    """Longest answer, in tokens."""
    structured: bool = False
    """Ask for verdicts by JSON schema, which vLLM and OpenAI enforce; without it, replies are read tolerantly."""
    dtype: str = "bfloat16"
    """Weights' type in vLLM."""
    chat_template: Annotated[str | None, FILES] = None
    """Jinja text or file that wraps messages for this model; the tokenizer's own where empty."""
    base_url: Annotated[str | None, RUNTIME_ONLY] = None
    """OpenAI-compatible endpoint. Without one, vLLM runs the model inside Ray actors."""
    api_key_env: Annotated[str | None, RUNTIME_ONLY] = None
    """Name of the environment variable that holds the endpoint's key."""
    prices: Annotated[Prices | None, RUNTIME_ONLY] = None
    """What the endpoint charges for live calls; needed where a budget is set."""
    mode: Annotated[Literal["live", "batch"], RUNTIME_ONLY] = "live"
    """`batch`: through the endpoint's batch interface, at half the price, with answers within a day."""
    requests_per_minute: Annotated[PositiveRate | None, RUNTIME_ONLY] = None
    """Limit of the endpoint, for all actors together."""
    tokens_per_minute: Annotated[PositiveRate | None, RUNTIME_ONLY] = None
    """Limit of the endpoint, prompts and longest answers counted, for all actors together."""
    max_in_flight: Annotated[Positive, RUNTIME_ONLY] = 64
    """Concurrent calls per actor."""
    timeout: Annotated[float, RUNTIME_ONLY] = 120.0
    """Seconds until a call over HTTP is given up and sent again."""
    retries: Annotated[int, RUNTIME_ONLY] = 5
    """Further attempts after 429, 5xx, a timeout or a lost connection."""
    engine: Engine = {}
    """Further vLLM engine arguments (tensor_parallel_size, gpu_memory_utilization, max_model_len)."""
    actors: Annotated[Positive, RUNTIME_ONLY] = 1
    """Ray actors that talk to this model; at least so many."""
    max_actors: Annotated[Positive | None, RUNTIME_ONLY] = None
    """At most so many, as work and cluster allow; as many as `actors` where empty."""
    num_cpus: Annotated[float, RUNTIME_ONLY] = 1.0
    """Ray CPUs per actor; without a GPU, its model computes with as many threads."""
    num_gpus: Annotated[float, RUNTIME_ONLY] = 0.0
    """Ray GPUs per actor."""

    def fingerprint_fields(self) -> dict[str, object]:
        """With the engine's arguments that change what the model says."""
        return super().fingerprint_fields() | {"engine": decisive(self.engine)}

    @property
    def most_actors(self) -> int:
        """How many Ray actors there may be."""
        return max(self.actors, self.max_actors or 0)

    @property
    def template(self) -> str | None:
        """The text of the chat template: a file's, where `chat_template` names one."""
        template = self.chat_template
        if template and "\n" not in template and Path(template).is_file():
            return Path(template).read_text()
        return template

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        """Dollars for so many tokens; what has no price costs nothing."""
        if not self.prices:
            return 0.0
        dollars = (
            tokens_in * self.prices.input + tokens_out * self.prices.output
        ) / 1e6
        return dollars * _BATCH_SHARE if self.mode == "batch" else dollars

    @model_validator(mode="after")
    def _has_the_gpus(self) -> "ModelSection":
        check_parallel(self.engine, self.num_gpus)
        return self

    @model_validator(mode="after")
    def _batch_has_an_endpoint(self) -> "ModelSection":
        if self.mode == "batch" and not self.base_url:
            raise ValueError(
                f"mode batch of {self.model!r} needs a `base_url`: an endpoint with OpenAI's batch interface"
            )
        return self


J = TypeVar("J", bound=ModelSection)


def told_apart(judges: tuple[J, ...]) -> tuple[J, ...]:
    """The judges, whose answers the ledger keeps by name and revision.

    Raises:
        ValueError: two of them cannot be told apart.
    """
    names = [(judge.model, judge.revision) for judge in judges]
    if again := next((n for n, name in enumerate(names) if name in names[:n]), None):
        raise ValueError(
            f"entry {again}: {names[again][0]!r} judges already; an answer of one would be taken for the other's. "
            "Where they do differ, give one a `revision` of its own"
        )
    return judges


class Judge(ModelSection):
    """A model that rates; unless told otherwise as FastChat asks it: greedily, with room for an explanation."""

    temperature: NotNegative = 0.0
    """Sampling temperature; 0 is greedy. Models that reason take 1 alone."""
    max_tokens: Positive = 2048
    """Longest answer, in tokens."""


class Teacher(ModelSection):
    """A model that writes rows."""

    weight: PositiveRate = 1.0
    """Its share of the works, beside the weights of the other teachers."""


class SourceSection(Section):
    """Where rows come from: the embedded world, a hub data set, or files."""

    source: Annotated[str, FILES]
    """`tiny`, `hub:<owner>/<name>[:<config>]`, or a path or glob of .jsonl, .jsonl.gz or .parquet files."""
    revision: str | None = None
    """Commit of a hub data set; a branch or tag becomes the commit that it stands for when a run begins."""
    split: str = "train"
    """Split of a hub data set."""
    license: str = "unknown"
    """Licence of the rows."""
    limit: Positive | None = None
    """Read at most so many rows, in file order."""


class Seeds(Section):
    """The human-made data that the recipe starts from."""

    dolly: tuple[SourceSection, ...] = ()
    """Instructions in the shape of databricks-dolly-15k: seeds of LaMini and Evol-Instruct."""
    flan: tuple[SourceSection, ...] = ()
    """Queries in the shape of the FLAN collection's dumps: seeds of Orca."""
    hh_rlhf: tuple[SourceSection, ...] = ()
    """Transcripts in the shape of Anthropic/hh-rlhf: hh-sft and align."""
