"""Serving and evaluation."""

from typing import Annotated, Any, Literal

from bezoar_ray.recipe.models import ModelPart
from bezoar_ray.recipe.part import FILES, HOW, Money, Part, Positive, decisive

CHECKPOINTS = ("base", "sft", "hh-sft", "dpo")


class Serve(Part):
    """The endpoint that hosts the checkpoints."""

    mode: Literal["joined", "merged"] = "joined"
    """`joined`: one engine, the untouched base with one LoRA per checkpoint. `merged`: an engine for each checkpoint,
    as what has no equal in one LoRA is served in any case."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the served weights."""
    host: Annotated[str, HOW] = "127.0.0.1"
    """Address that the endpoint binds to."""
    port: Annotated[int, HOW] = 8000
    """Port of `bezoar serve`; evaluate takes a free one."""
    engine: Annotated[dict[str, Any], HOW] = {}
    """Further vLLM engine arguments."""
    num_cpus: Annotated[float, HOW] = 1.0
    """Ray CPUs per replica; without a GPU, its model computes with as many threads."""
    num_gpus: Annotated[float, HOW] = 0.0
    """Ray GPUs per replica."""

    def what(self) -> dict[str, Any]:
        """With the engine's arguments that change what the checkpoints say."""
        return super().what() | {"engine": decisive(self.engine)}


class HarnessTask(Part):
    """One lm-eval task and the one metric of it that is compared."""

    task: str
    """Name of the task or group."""
    metric: str = "acc"
    """The metric that enters the mean."""
    num_fewshot: int | None = None
    """Examples in the prompt; the task's own default where empty."""
    limit: Positive | None = None
    """First so many items."""


class Harness(Part):
    """LM Evaluation Harness, through the endpoint."""

    tasks: tuple[HarnessTask, ...] = ()
    """The tasks, each with its metric."""
    include_path: Annotated[str | None, FILES] = None
    """Folder of further task files; `tiny` for the embedded ones."""
    apply_chat_template: bool = False
    """Ask through the recipe's chat template; the published leaderboards send the bare prompt."""
    concurrency: Annotated[Positive, HOW] = 16
    """Requests in flight."""


class MtBench(Part):
    """MT-Bench single grading (arXiv 2306.05685), judged by the first judge unless `judge` names another."""

    questions: Annotated[str, FILES] = "tiny"
    """FastChat's question.jsonl, or `tiny` for the embedded ones."""
    references: Annotated[str | None, FILES] = None
    """FastChat's reference answers (.jsonl), for math, reasoning and coding."""
    judge: ModelPart | None = None
    """Judge of the answers."""
    max_tokens: Positive = 1024
    """Longest answer, in tokens."""
    limit: Positive | None = None
    """First so many questions."""


class Evaluate(Part):
    """What the checkpoints are measured with; a null part is left out."""

    harness: Harness | None = Harness()
    mt_bench: MtBench | None = MtBench()
    budget_usd: Annotated[Money | None, HOW] = None
    """Dollars that the MT-Bench judge's calls may cost."""
    heldout_pairs: Positive = 200
    """HH-RLHF pairs kept out of training to score every checkpoint on."""
