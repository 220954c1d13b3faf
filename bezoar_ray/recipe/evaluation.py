"""Serving and evaluation."""

from functools import cached_property
from typing import Annotated, Any, Literal

import yaml
from pydantic import AliasChoices, Field, field_validator, model_validator

from bezoar_ray.recipe.model_sections import Judge, told_apart
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
    """The endpoint that hosts the checkpoints."""

    mode: Literal["joined", "merged"] = "joined"
    """`joined`: one engine, the untouched base with one LoRA per checkpoint. `merged`: an engine for each checkpoint,
    as what has no equal in one LoRA is served in any case."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the served weights."""
    host: Annotated[str, RUNTIME_ONLY] = "127.0.0.1"
    """Address that the endpoint binds to."""
    port: Annotated[int, RUNTIME_ONLY] = 8000
    """Port of `bezoar serve`; evaluate takes a free one."""
    engine: Engine = {}
    """Further vLLM engine arguments."""
    num_cpus: Annotated[float, RUNTIME_ONLY] = 1.0
    """Ray CPUs per replica; without a GPU, its model computes with as many threads."""
    num_gpus: Annotated[float, RUNTIME_ONLY] = 0.0
    """Ray GPUs per replica."""
    replicas: Annotated[Positive, RUNTIME_ONLY] = 1
    """Replicas of each engine; at least so many."""
    max_replicas: Annotated[Positive | None, RUNTIME_ONLY] = None
    """At most so many, as requests come and go; as many as `replicas` where empty."""
    max_request_bytes: Annotated[Positive, RUNTIME_ONLY] = 4 * 2**20
    """A request with a longer body is refused."""

    @model_validator(mode="after")
    def _can_be_given(self) -> "Serve":
        check_parallel(self.engine, self.num_gpus)
        if (self.max_replicas or self.replicas) < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, less than replicas, {self.replicas}"
            )
        return self

    def fingerprint_fields(self) -> dict[str, object]:
        """With the engine's arguments that change what the checkpoints say."""
        return super().fingerprint_fields() | {"engine": decisive(self.engine)}


class HarnessTask(Section):
    """One lm-eval task; all its metrics are shown, and one of them enters the mean."""

    task: str
    """Name of the task or group."""
    metric: str = "acc"
    """The metric that enters the mean, if it is a share of which a higher one is better."""
    num_fewshot: int | None = None
    """Examples in the prompt; the task's own default where empty."""
    limit: Positive | None = None
    """First so many items."""


class Harness(Section):
    """LM Evaluation Harness, through the endpoint."""

    groups: tuple[Literal["openllama", "leaderboard-v1"], ...] = ()
    """Sets of tasks: OpenLLaMA's own, and the first Open LLM Leaderboard's six."""
    tasks: tuple[HarnessTask, ...] = ()
    """Further tasks, each with its metric."""
    limit: Positive | None = None
    """First so many items of each task of the groups."""
    include_path: Annotated[str | None, FILES] = None
    """Folder of further task files; `tiny` for the embedded ones."""
    apply_chat_template: bool = False
    """Ask through the recipe's chat template; the published leaderboards send the bare prompt."""
    concurrency: Annotated[Positive, RUNTIME_ONLY] = 16
    """Requests in flight, for each task that is under way."""
    at_once: Annotated[Positive, RUNTIME_ONLY] = 2
    """Tasks under way at a time, each in a process of its own."""

    @model_validator(mode="after")
    def _tells_its_tasks_apart(self) -> "Harness":
        names = [self.name_of(task) for task in self.all_tasks]
        if twice := next(
            (name for n, name in enumerate(names) if name in names[:n]), None
        ):
            raise ValueError(
                f"{twice} stands twice, with another metric or limit; leave one out. All metrics of a task are shown"
            )
        return self

    @cached_property
    def all_tasks(self) -> tuple[HarnessTask, ...]:
        """The tasks of the groups, then the others, each once."""
        listed = {
            group: yaml.safe_load(
                packaged_text(f"harness/{group}.yaml", None, "groups")
            )
            for group in self.groups
        }
        grouped = [
            HarnessTask(**task, limit=self.limit)
            for tasks in listed.values()
            for task in tasks
        ]
        return tuple(dict.fromkeys((*grouped, *self.tasks)))

    def name_of(self, task: HarnessTask) -> str:
        """What a task's results stand under: its name, and its number of examples if it is asked with several."""
        if sum(other.task == task.task for other in self.all_tasks) < 2:
            return task.task
        return f"{task.task}, {'default' if task.num_fewshot is None else task.num_fewshot}-shot"

    def fingerprint_fields(self) -> dict[str, object]:
        """With the tasks in place of the groups' names."""
        return super().fingerprint_fields() | {
            "groups": [],
            "limit": None,
            "tasks": [task.fingerprint_fields() for task in self.all_tasks],
        }


_LATER_FIELDS = {"references_skip", "prompts"}  # of MtBench: run directories are older


class MtBench(Section):
    """MT-Bench (arXiv 2306.05685): judges grade each turn, and one of them compares models two at a time."""

    questions: Annotated[str, FILES]
    """FastChat's question.jsonl, questions of your own in its shape, or `tiny` for the embedded ones."""
    references: Annotated[str | None, FILES] = None
    """Reference answers in FastChat's shape (.jsonl): shown for math, reasoning, coding and categories of your own."""
    references_skip: tuple[int | str, ...] = ()
    """Ids of questions whose reference answers are disputed. They are judged like the others, and a second score leaves
    them out."""
    prompts: Annotated[str | None, FILES] = None
    """FastChat's judge_prompts.jsonl: scores can be compared with published ones only where the judge is asked in the
    same words. The judge is asked in our own words where empty."""
    judges: Annotated[
        tuple[Judge, ...],
        OneOrMore,
        Field(validation_alias=AliasChoices("judges", "judge")),
    ] = ()
    """The first one's grades are the score; those of others tell how far judges agree. A single one may stand under
    `judge`; the recipe's first judge where empty."""
    pairwise: tuple[tuple[str, str], ...] = (
        ("sft", "base"),
        ("hh-sft", "sft"),
        ("dpo", "hh-sft"),
    )
    """Models whose answers the first judge compares, in both orders: checkpoints, or others from `answers`.

    `dpo` stands for the checkpoint of `align`, whatever its method.
    """
    temperatures: dict[str, NotNegative] = {
        "writing": 0.7,
        "roleplay": 0.7,
        "stem": 0.1,
        "humanities": 0.1,
    }
    """Sampling temperature of the answers, by category of the questions; FastChat's. Others are greedy."""
    max_tokens: Positive = 1024
    """Longest answer, in tokens."""
    limit: Positive | None = None
    """First so many questions."""
    answers: Annotated[tuple[str, ...], FILES] = ()
    """FastChat's answer files (model_answer/*.jsonl) of further models, judged beside the checkpoints."""
    judgments: Annotated[tuple[str, ...], FILES] = ()
    """FastChat's files (model_judgment/*_single.jsonl, *_pair.jsonl): what other judges said of these answers."""

    def fingerprint_fields(self) -> dict[str, Any]:
        """Without empty fields of later versions: what an earlier one has measured stays measured."""
        fields = super().fingerprint_fields()
        return {
            name: value
            for name, value in fields.items()
            if value or name not in _LATER_FIELDS
        }

    @field_validator("judges")
    @classmethod
    def _tells_its_judges_apart(cls, judges: tuple[Judge, ...]) -> tuple[Judge, ...]:
        return told_apart(judges)

    @model_validator(mode="after")
    def _compares_two(self) -> "MtBench":
        if same := next((pair for pair in self.pairwise if pair[0] == pair[1]), None):
            raise ValueError(f"pairwise: {list(same)} names one model twice")
        unknown = [
            name
            for pair in self.pairwise
            for name in pair
            if name not in checkpoint_names()
        ]
        if unknown and not self.answers:
            raise ValueError(
                f"pairwise: {unknown[0]!r} is none of {', '.join(checkpoint_names())}, and there are no `answers`"
            )
        if twice := next(
            (
                pair
                for n, pair in enumerate(self.pairwise)
                if {*pair} in map(set, self.pairwise[:n])
            ),
            None,
        ):
            raise ValueError(
                f"pairwise: {list(twice)} stands twice; both orders are shown in any case"
            )
        return self


class Evaluate(Section):
    """What the checkpoints are measured with; a null part is left out."""

    harness: Harness | None = Harness()
    mt_bench: MtBench | None = None
    budget_usd: Annotated[Money | None, RUNTIME_ONLY] = None
    """Dollars that the MT-Bench judge's calls may cost."""
    heldout_pairs: Positive = 200
    """HH-RLHF pairs kept out of training to score every checkpoint on."""
