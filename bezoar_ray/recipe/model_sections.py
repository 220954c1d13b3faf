"""The sections that name models and data sources."""

import math
import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

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

Attribute = Literal[
    "helpfulness", "correctness", "coherence", "complexity", "verbosity"
]
"""What an answer is rated for, as in HelpSteer2 (arXiv 2406.08673)."""
RatedField = Literal["prompt", "response", Attribute]
"""The fields of a rated answer."""

# From git's short form up to a SHA-256 hash.
COMMIT = re.compile("[0-9a-f]{7,64}")
# Price of a batch call as a share of a live call's price, at OpenAI and at the
# providers that copy its batch interface.
_BATCH_PRICE = 0.5


class Prices(Section):
    """Prices of an endpoint, in dollars per million tokens."""

    input: float = 0.0
    """Dollars per million prompt tokens."""
    output: float = 0.0
    """Dollars per million completion tokens."""


class Weights(Section):
    """Which version of a model's weights is loaded, and how far it is trusted."""

    revision: str | None = None
    """Commit of a Hugging Face model. A branch or tag is resolved to its commit when a
    run begins. Pin the commit for runs that are to be compared."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Needs a `revision` that is a commit,
    so that you run the code that you have read."""
    if TYPE_CHECKING:
        model: str  # Every subclass defines it, with a docstring of its own.
    pickled_weights: Annotated[bool, RUNTIME_ONLY] = False
    """Also load weights from .bin and .pt files. They are pickles, which can run code.
    By default only safetensors files are loaded."""

    @model_validator(mode="after")
    def _check_pinned_code(self) -> "Weights":
        is_pinned = COMMIT.fullmatch(self.revision or "")
        if self.trust_remote_code and not is_pinned:
            raise ValueError(
                f"trust_remote_code of {self.model!r} needs `revision`: pin the commit "
                "whose code you have read"
            )
        return self


class ModelSection(Weights, SchedulingSection):
    """A model that is called: teacher or judge."""

    model: Annotated[str, FILES]
    """Hugging Face name, local folder, name at the endpoint, or one of the embedded
    `tiny-*` models."""
    license: str = "unknown"
    """License or terms of use that apply to the model's output. The verdict on
    commercial use depends on it."""
    temperature: NotNegative = 1.0
    """Sampling temperature. 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability mass of nucleus sampling."""
    max_tokens: Positive = 512
    """Maximum length of one answer in tokens. Raise it if many rows are rejected as
    truncated."""
    structured: bool = False
    """Request verdicts by JSON schema, which vLLM and OpenAI enforce. By default the
    verdict is parsed from free text. Only judges use it."""
    dtype: str = "bfloat16"
    """Data type of the weights in vLLM."""
    chat_template: Annotated[str | None, FILES] = None
    """Jinja text or file that formats messages for this model. The tokenizer's own
    template where empty."""
    base_url: Annotated[str | None, RUNTIME_ONLY] = None
    """URL of an OpenAI-compatible endpoint. Where empty, vLLM runs the model inside Ray
    actors."""
    api_key_env: Annotated[str | None, RUNTIME_ONLY] = None
    """Name of the environment variable that holds the endpoint's API key."""
    prices: Annotated[Prices | None, RUNTIME_ONLY] = None
    """What the endpoint charges for live calls. Required where a budget is set."""
    mode: Annotated[Literal["live", "batch"], RUNTIME_ONLY] = "live"
    """`live` sends each call by itself. `batch` uses the endpoint's batch interface, at
    half the price, and answers arrive within a day."""
    requests_per_minute: Annotated[PositiveRate | None, RUNTIME_ONLY] = None
    """Request limit of the endpoint. All actors together keep it."""
    tokens_per_minute: Annotated[PositiveRate | None, RUNTIME_ONLY] = None
    """Token limit of the endpoint. All actors together keep it. A call counts with its
    prompt and its longest possible answer."""
    max_in_flight: Annotated[Positive, RUNTIME_ONLY] = 64
    """Concurrent calls of one actor."""
    timeout: Annotated[float, RUNTIME_ONLY] = 120.0
    """Seconds until an HTTP call is given up and sent again."""
    retries: Annotated[int, RUNTIME_ONLY] = 5
    """Extra attempts after a 429 or 5xx response, a timeout or a lost connection."""
    engine: Engine = {}
    """Extra vLLM engine arguments, such as `tensor_parallel_size`,
    `gpu_memory_utilization` or `max_model_len`."""
    actors: Annotated[Positive, RUNTIME_ONLY] = 1
    """Minimum number of Ray actors that call this model. Without an endpoint, each of
    them runs an engine of its own."""
    max_actors: Annotated[Positive | None, RUNTIME_ONLY] = None
    """Maximum number of Ray actors. Their number grows up to it as far as tasks are
    waiting and the cluster has capacity. Equal to `actors` where empty."""
    num_cpus: Annotated[float, RUNTIME_ONLY] = 1.0
    """Ray CPUs of each actor. Without a GPU, its engine computes with as many
    threads."""
    num_gpus: Annotated[float, RUNTIME_ONLY] = 0.0
    """Ray GPUs of each actor. A share, such as 0.5, puts several actors on one GPU."""

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields, with those engine arguments that change the answers."""
        return super().fingerprint_fields() | {"engine": decisive(self.engine)}

    @property
    def most_actors(self) -> int:
        """Maximum number of Ray actors."""
        return max(self.actors, self.max_actors or 0)

    @property
    def template(self) -> str | None:
        """Text of the chat template, read from a file if it names one."""
        template = self.chat_template
        if template and "\n" not in template and Path(template).is_file():
            return Path(template).read_text()
        return template

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        """Price of some tokens in dollars; 0 where the section has no prices."""
        if not self.prices:
            return 0.0
        input_price = tokens_in * self.prices.input
        output_price = tokens_out * self.prices.output
        dollars = (input_price + output_price) / 1e6
        if self.mode == "batch":
            return dollars * _BATCH_PRICE
        return dollars

    @model_validator(mode="after")
    def _check_gpus(self) -> "ModelSection":
        check_parallel(self.engine, self.num_gpus)
        return self

    @model_validator(mode="after")
    def _check_batch_endpoint(self) -> "ModelSection":
        if self.mode == "batch" and not self.base_url:
            raise ValueError(
                f"mode batch of {self.model!r} needs a `base_url`: an endpoint with "
                "OpenAI's batch interface"
            )
        return self


J = TypeVar("J", bound=ModelSection)


def check_distinct(judges: tuple[J, ...]) -> tuple[J, ...]:
    """Check that no two judges have the same name and revision.

    The ledger keeps answers by model and revision, so one judge's answers would pass
    for the other's.

    Raises:
        ValueError: two judges have both in common.
    """
    seen = set()
    for index, judge in enumerate(judges):
        identity = (judge.model, judge.revision)
        if identity in seen:
            raise ValueError(
                f"entry {index}: duplicate judge {judge.model!r}. If the two differ, "
                "set a different `revision` to tell their answers apart"
            )
        seen.add(identity)
    return judges


class Judge(ModelSection):
    """A model that rates rows or answers.

    The defaults are those of FastChat's judge: greedy, with room for an explanation.
    """

    temperature: NotNegative = 0.0
    """Sampling temperature. 0 is greedy. Set 1 for reasoning models that accept no
    other value."""
    max_tokens: Positive = 2048
    """Maximum length of one answer in tokens. A reasoning model's hidden tokens count,
    too."""


class RowJudge(Judge):
    """A judge of rows: a model that writes a verdict, or a reward model."""

    reward: Annotated[str | None, RUNTIME_ONLY] = None
    """Folder of a reward model, `checkpoints/rm` of another run directory. It rates the
    rows in place of `model`, in Ray actors, and reads no rubric."""

    @model_validator(mode="before")
    @classmethod
    def _name_reward_model(cls, fields: Any) -> Any:
        """Set `model` to the weights of the reward model.

        So a reward model has the name, identity and fingerprint of any local model.
        """
        if not isinstance(fields, dict) or not fields.get("reward"):
            return fields
        model = str(PurePath(fields["reward"], "merged"))
        if fields.get("model", model) != model:
            raise ValueError(
                f"model {fields['model']!r} and reward {fields['reward']!r}: a judge "
                "is one of the two. Leave the other out"
            )
        return fields | {"model": model}

    @model_validator(mode="after")
    def _check_reward_settings(self) -> "RowJudge":
        if not self.reward:
            return self
        for name in ("base_url", "chat_template", "structured"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} of reward {self.reward!r}: a reward model runs in Ray "
                    "actors, with its own chat template, and writes no text. "
                    "Leave it out"
                )
        return self


class Teacher(ModelSection):
    """A model that writes the synthetic rows."""

    weight: PositiveRate = 1.0
    """Share of the tasks that this teacher gets, relative to the weights of the other
    teachers."""


class SourceSection(Section):
    """Where rows come from: the embedded world, a data set on the Hub, or files."""

    source: Annotated[str, FILES]
    """`tiny`, `hub:<owner>/<name>[:<config>]`, or a path or glob of .jsonl, .jsonl.gz
    or .parquet files."""
    revision: str | None = None
    """Commit of a data set on the Hub, where it is required. A branch or tag is
    resolved to its commit when a run begins."""
    split: str = "train"
    """Split of a data set on the Hub."""
    license: str = "unknown"
    """License of the rows. The verdict on commercial use depends on it."""
    limit: Positive | None = None
    """Read only the first rows, up to this number. All rows where empty."""


class RatingSource(SourceSection):
    """Where rated answers come from, and how the source rates them.

    UltraFeedback (openbmb/UltraFeedback) has four answers in each row, rated from 1 to
    5. One source reads one of them:

        source: hub:openbmb/UltraFeedback
        scale: [1, 5]
        fields:
          prompt: instruction
          response: completions.0.response
          helpfulness: completions.0.annotations.helpfulness.Rating
          correctness: completions.0.annotations.truthfulness.Rating

    Write the source four times, with the indices 0 to 3, to read them all. In
    argilla/ultrafeedback-binarized-preferences-cleaned, the answers are
    `chosen.1.content` and `rejected.1.content`, and the mean of all ratings is
    `chosen-rating` or `rejected-rating`.
    """

    fields: dict[RatedField, str] = {}
    """Column of the source for `prompt`, `response` and each attribute. A column has
    the field's own name where none is given. Dots lead into objects and lists, such as
    `completions.0.response`. A path names one value: no path reads all answers of a
    list."""
    scale: tuple[float, float] = (0, 4)
    """The lowest and the highest rating that the source gives. They are mapped to 0 and
    4, those between them linearly."""

    @model_validator(mode="after")
    def _check_scale(self) -> "RatingSource":
        lowest, highest = self.scale
        if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
            raise ValueError(
                f"scale {list(self.scale)}: expected the lowest and the highest "
                "rating, such as [1, 5]"
            )
        return self

    @model_validator(mode="after")
    def _check_columns(self) -> "RatingSource":
        for name, column in self.fields.items():
            if not column:
                raise ValueError(
                    f"fields.{name}: it is empty. Name the column, or leave the field out"
                )
        return self


class Seeds(Section):
    """The human-made data that the recipe starts from."""

    dolly: tuple[SourceSection, ...] = ()
    """Instructions in the format of databricks-dolly-15k: seeds of LaMini and
    Evol-Instruct."""
    flan: tuple[SourceSection, ...] = ()
    """Queries in the format of the FLAN collection's dumps: seeds of Orca."""
    hh_rlhf: tuple[SourceSection, ...] = ()
    """Transcripts in the shape of Anthropic/hh-rlhf: hh-sft and align."""
    helpsteer: tuple[RatingSource, ...] = ()
    """Rated answers, in the format of nvidia/HelpSteer2 or with columns of their own:
    rm."""
    preferences: tuple[SourceSection, ...] = ()
    """Preferences with a strength, in the format of HelpSteer2-Preference
    (`preference/preference.jsonl.gz` of nvidia/HelpSteer2), or pairs in the shape of
    seeds.hh_rlhf: rm. Of rows with a column `split`, only those of the source's `split`
    are read."""
