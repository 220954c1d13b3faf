"""The sections of serving and evaluation."""

from functools import cached_property
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from bezoar_ray.recipe.model_sections import Judge, SourceSection, check_distinct
from bezoar_ray.recipe.section import (
    FILES,
    RUNTIME_ONLY,
    Engine,
    Money,
    NotNegative,
    OneOrMore,
    Positive,
    SchedulingSection,
    Section,
    check_parallel,
    decisive,
    packaged_text,
)
from bezoar_ray.stages import checkpoint_names


class Serve(SchedulingSection):
    """The endpoint that serves the checkpoints."""

    mode: Literal["joined", "merged"] = "joined"
    """`joined`: one engine serves the untouched base with one LoRA per checkpoint.
    `merged`: each checkpoint has an engine of its own. A checkpoint that cannot be
    expressed as one LoRA (DoRA) is served merged in either mode."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Data type of the served weights."""
    host: Annotated[str, RUNTIME_ONLY] = "127.0.0.1"
    """Address on which the endpoint listens. `0.0.0.0` makes it reachable from other
    machines."""
    port: Annotated[int, RUNTIME_ONLY] = 8000
    """Port of `bezoar serve`. The evaluate stage takes a free port instead."""
    engine: Engine = {}
    """Extra vLLM engine arguments."""
    num_cpus: Annotated[float, RUNTIME_ONLY] = 1.0
    """Ray CPUs of each replica. Without a GPU, its engine computes with as many
    threads."""
    num_gpus: Annotated[float, RUNTIME_ONLY] = 0.0
    """Ray GPUs of each replica."""
    replicas: Annotated[Positive, RUNTIME_ONLY] = 1
    """Minimum number of replicas of each engine."""
    max_replicas: Annotated[Positive | None, RUNTIME_ONLY] = None
    """Maximum number of replicas of each engine. Their number follows the load. Equal
    to `replicas` where empty."""
    reward_model: Annotated[bool, RUNTIME_ONLY] = True
    """`bezoar serve` also serves the reward model `rm`, if there is one, by an engine
    of its own with the resources of this section."""
    max_request_bytes: Annotated[Positive, RUNTIME_ONLY] = 4 * 2**20
    """Maximum size of a request body in bytes. A larger request is refused."""

    @model_validator(mode="after")
    def _check_replicas(self) -> "Serve":
        check_parallel(self.engine, self.num_gpus)
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, less than replicas, "
                f"{self.replicas}"
            )
        return self

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields, with those engine arguments that change the answers."""
        return super().fingerprint_fields() | {"engine": decisive(self.engine)}


class BiasMetric(Section):
    """One metric of social bias, with the value of an unbiased model."""

    metric: str
    """Name of the metric in lm-eval."""
    ideal: float
    """Value of a model without this bias. Any distance from it, above or below, is
    bias."""
    meaning: str = ""
    """What the metric is, and what values above and below the ideal mean. The report
    shows it."""


# Fields of sections that came later than the first run directories.
_LATER_FIELDS = {"references_skip", "prompts", "reward_bench", "sample"}


def _without_empty_later_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out later fields that are empty.

    A run directory made before these fields existed keeps its fingerprint.
    """
    return {
        name: value
        for name, value in fields.items()
        if value or name not in _LATER_FIELDS
    }


class HarnessTask(Section):
    """One lm-eval task. All its metrics are reported, and one enters the mean."""

    task: str
    """Name of the task or group of tasks in lm-eval."""
    metric: str = "acc"
    """Metric that enters the mean. It must be a share of which higher is better."""
    num_fewshot: int | None = None
    """Solved examples in the prompt. The task's own default where empty."""
    limit: Positive | None = None
    """Evaluate only the first items, up to this number. All items where empty."""
    sample: Positive | None = None
    """Evaluate up to this number of items, drawn from the whole task with a fixed seed.
    Use it in place of `limit` for a task whose items are sorted."""
    bias: Annotated[tuple[BiasMetric, ...], RUNTIME_ONLY] = ()
    """Metrics of social bias. A task with any is in the report's section on bias, and
    none of its metrics enters the mean."""

    @model_validator(mode="after")
    def _check_sample(self) -> "HarnessTask":
        if self.limit and self.sample:
            raise ValueError(
                f"{self.task}: limit {self.limit} and sample {self.sample}. Keep one: "
                "the first items, or a draw"
            )
        return self

    def limited(self, limit: int) -> "HarnessTask":
        """The task with at most this number of items."""
        if self.sample:
            sample = min(limit, self.sample)
            return self.model_copy(update={"sample": sample})
        return self.model_copy(update={"limit": limit})

    def fingerprint_fields(self) -> dict[str, Any]:
        """The fields, without later fields that are empty."""
        return _without_empty_later_fields(super().fingerprint_fields())


class Harness(Section):
    """LM Evaluation Harness, run through the endpoint."""

    groups: tuple[Literal["openllama", "leaderboard-v1", "social-bias"], ...] = ()
    """Predefined sets of tasks: OpenLLaMA's own evaluation, the six tasks of the first
    Open LLM Leaderboard, and tasks on social bias."""
    tasks: tuple[HarnessTask, ...] = ()
    """Extra tasks."""
    limit: Positive | None = None
    """Evaluate only the first items of each task of `groups`, up to this number. Of a
    task with a `sample`, so many are drawn."""
    include_path: Annotated[str | None, FILES] = None
    """Folder with task files of your own, or `tiny` for the embedded tasks."""
    apply_chat_template: bool = False
    """Send prompts through the recipe's chat template. The published leaderboards send
    them as they are, so leave it off to compare with those."""
    concurrency: Annotated[Positive, RUNTIME_ONLY] = 16
    """Concurrent requests of each running task."""
    at_once: Annotated[Positive, RUNTIME_ONLY] = 2
    """Tasks that run at the same time, each in a process of its own."""

    @model_validator(mode="after")
    def _check_distinct_tasks(self) -> "Harness":
        seen = set()
        for task in self.all_tasks:
            name = self.name_of(task)
            if name in seen:
                raise ValueError(
                    f"{name} appears twice, with different metrics or limits. Remove "
                    "one: the report shows all metrics of a task"
                )
            seen.add(name)
        return self

    @cached_property
    def all_tasks(self) -> tuple[HarnessTask, ...]:
        """The tasks of the groups, then the extra tasks, without duplicates."""
        grouped = []
        for group in self.groups:
            text = packaged_text(f"harness/{group}.yaml", None, "groups")
            for fields in yaml.safe_load(text):
                task = HarnessTask(**fields)
                grouped.append(task.limited(self.limit) if self.limit else task)
        return tuple(dict.fromkeys((*grouped, *self.tasks)))

    def name_of(self, task: HarnessTask) -> str:
        """The name of a task in results.

        It includes the number of examples if the recipe evaluates the task with
        several.
        """
        same_name = [other for other in self.all_tasks if other.task == task.task]
        if len(same_name) < 2:
            return task.task
        shots = "default" if task.num_fewshot is None else task.num_fewshot
        return f"{task.task}, {shots}-shot"

    def fingerprint_fields(self) -> dict[str, object]:
        """The fields, with the groups' tasks instead of the groups' names."""
        tasks = [task.fingerprint_fields() for task in self.all_tasks]
        return super().fingerprint_fields() | {
            "groups": [],
            "limit": None,
            "tasks": tasks,
        }


class MtBench(Section):
    """MT-Bench (arXiv 2306.05685): judges grade each turn, one compares models."""

    questions: Annotated[str, FILES]
    """FastChat's question.jsonl, questions of your own in its format, or `tiny` for the
    embedded questions."""
    references: Annotated[str | None, FILES] = None
    """Reference answers in FastChat's format (.jsonl). Judges see them for math,
    reasoning, coding and categories of your own."""
    references_skip: tuple[int | str, ...] = ()
    """Ids of questions whose reference answers are disputed. They are judged like the
    others, and a second score leaves them out."""
    prompts: Annotated[str | None, FILES] = None
    """FastChat's judge_prompts.jsonl. Set it to compare scores with published ones,
    which needs the same judge prompts. The package's own prompts where empty."""
    judges: Annotated[
        tuple[Judge, ...],
        OneOrMore,
        Field(validation_alias=AliasChoices("judges", "judge")),
    ] = ()
    """Judges of the answers. The first judge's grades are the score. Those of the
    others show how far judges agree. A single judge may be given as `judge`. The
    recipe's first judge where empty."""
    # By default, each checkpoint against the one that it was trained from.
    pairwise: tuple[tuple[str, str], ...] = (
        ("sft", "base"),
        ("hh-sft", "sft"),
        ("dpo", "hh-sft"),
    )
    """Pairs of models whose answers the first judge compares, in both orders. They are
    checkpoints, or models from `answers`. `dpo` stands for the checkpoint of `align`,
    whatever its method."""
    temperatures: dict[str, NotNegative] = {
        "writing": 0.7,
        "roleplay": 0.7,
        "stem": 0.1,
        "humanities": 0.1,
    }
    """Sampling temperature of the answers, by category of the questions. The defaults
    are FastChat's. Other categories are answered greedily."""
    max_tokens: Positive = 1024
    """Maximum length of one answer in tokens."""
    limit: Positive | None = None
    """Use only the first questions, up to this number. All questions where empty."""
    answers: Annotated[tuple[str, ...], FILES] = ()
    """FastChat's answer files (model_answer/*.jsonl) of other models, which are judged
    like the checkpoints."""
    judgments: Annotated[tuple[str, ...], FILES] = ()
    """FastChat's judgment files (model_judgment/*_single.jsonl, *_pair.jsonl): verdicts
    of other judges on these answers, to compare the judges with. Also the votes of
    people, from lmsys/mt_bench_human_judgments (.parquet or .jsonl) or
    `bezoar review --pairs`."""

    def fingerprint_fields(self) -> dict[str, Any]:
        """The fields, without later fields that are empty."""
        return _without_empty_later_fields(super().fingerprint_fields())

    @field_validator("judges")
    @classmethod
    def _check_distinct_judges(cls, judges: tuple[Judge, ...]) -> tuple[Judge, ...]:
        return check_distinct(judges)

    @model_validator(mode="after")
    def _check_pairs(self) -> "MtBench":
        seen: list[set[str]] = []
        for pair in self.pairwise:
            if pair[0] == pair[1]:
                raise ValueError(f"pairwise: {list(pair)} names one model twice")
            for name in pair:
                self._check_model(name)
            if set(pair) in seen:
                raise ValueError(
                    f"pairwise: {list(pair)} appears twice. Remove one: the report "
                    "shows both orders of a pair"
                )
            seen.append(set(pair))
        return self

    def _check_model(self, name: str) -> None:
        known = checkpoint_names()
        if name not in known and not self.answers:
            raise ValueError(
                f"pairwise: {name!r} is none of {', '.join(known)}, and there are no "
                "`answers`"
            )


def _source_with_split(split: str) -> BeforeValidator:
    """Accept a source as text alone, and set the split that the data set has."""

    def complete(value: object) -> object:
        if isinstance(value, str):
            return {"source": value, "split": split}
        if isinstance(value, dict):
            return {"split": split, **value}
        return value

    return BeforeValidator(complete)


class RewardBench(Section):
    """RewardBench 1 (arXiv 2403.13787) and 2 (arXiv 2506.01937).

    The reward model chooses among the answers to each prompt. So does each trained
    checkpoint by its implicit reward: how much likelier it makes an answer than the
    checkpoint that its training started from.
    """

    one: Annotated[SourceSection | None, _source_with_split("filtered")] = None
    """RewardBench 1: a file, `hub:allenai/reward-bench` with a `revision`, or `tiny`.
    The name of a source may stand in place of the section."""
    two: Annotated[SourceSection | None, _source_with_split("test")] = None
    """RewardBench 2: a file, `hub:allenai/reward-bench-2` with a `revision`, or `tiny`.
    The name of a source may stand in place of the section."""
    limit: Positive | None = None
    """Use only the first items of each subset, up to this number. In the subset Ties,
    prompts are counted. All items where empty."""

    @property
    def sources(self) -> dict[Literal["one", "two"], SourceSection]:
        """The sources of the versions that are given, by version."""
        sources: dict[Literal["one", "two"], SourceSection] = {}
        if self.one:
            sources["one"] = self.one
        if self.two:
            sources["two"] = self.two
        return sources

    @model_validator(mode="after")
    def _check_sources(self) -> "RewardBench":
        if not self.sources:
            raise ValueError(
                "neither `one` nor `two` is given. Name a file of RewardBench 1 or 2, "
                "or set reward_bench to null"
            )
        for name, source in self.sources.items():
            if source.limit:
                raise ValueError(
                    f"{name}.limit {source.limit}: the first rows of the file are of "
                    "one subset only. Use reward_bench.limit, which counts the items "
                    "of each subset"
                )
        return self


class Evaluate(Section):
    """How the checkpoints are measured. Set a benchmark to null to leave it out."""

    harness: Harness | None = Harness()
    mt_bench: MtBench | None = None
    reward_bench: RewardBench | None = None
    budget_usd: Annotated[Money | None, RUNTIME_ONLY] = None
    """Maximum dollars that the calls of MT-Bench's judges may cost. The run stops
    before it would exceed them."""
    heldout_pairs: Positive = 200
    """HH-RLHF pairs that are kept out of training. Every checkpoint is scored on
    them."""

    def fingerprint_fields(self) -> dict[str, Any]:
        """The fields, without later fields that are empty."""
        return _without_empty_later_fields(super().fingerprint_fields())
