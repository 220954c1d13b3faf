"""The recipe: what to make (models, prompts, data, thresholds) and how to run it (workers, keys, budget).

Fields marked `How` never enter a fingerprint: changing them goes on where the run stopped. All others do, so that a
changed rubric redoes the filter and what follows, and nothing else.
"""

import difflib
import glob
import hashlib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bezoar_ray.errors import RecipeError

SCHEMES = ("lamini", "evol_instruct", "orca")
CHECKPOINTS = ("base", "sft", "hh-sft", "dpo")
_HOW = "how"
Operation = Literal["constraints", "deepen", "concretise", "reasoning", "complicate_input", "breadth"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A section of the recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    def what(self) -> dict[str, Any]:
        """The fields that decide what comes out, with the content of named files in place of their paths."""
        fields = type(self).model_fields
        return {name: _what(getattr(self, name)) for name, field in fields.items() if _HOW not in field.metadata}


def _what(value: Any) -> Any:
    if isinstance(value, Part):
        return value.what()
    if isinstance(value, dict):
        return {key: _what(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_what(item) for item in value]
    return _content(value) or value if isinstance(value, str) and "\n" not in value else value


def _content(path: str) -> str | None:
    """A digest of the files that a path or glob names, or None where it names none."""
    total, files = hashlib.sha256(), [name for name in sorted(glob.glob(path)) if Path(name).is_file()]
    for name in files:
        with open(name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest() if files else None


class Prices(Part):
    """Dollars per million tokens."""

    input: float = 0.0
    """Dollars per million prompt tokens."""
    output: float = 0.0
    """Dollars per million completion tokens."""


class ModelPart(Part):
    """A model that is talked to: teacher or judge."""

    model: str
    """Hugging Face name, local folder, name at the endpoint, or one of the embedded `tiny-*` models."""
    revision: str | None = None
    """Commit of a Hugging Face model; pinned, so that the ledger's answers stay the model's own."""
    license: str = "unknown"
    """Licence or terms of use that bind what the model writes; decides whether the result may be sold."""
    temperature: float = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling mass."""
    max_tokens: Positive = 512
    """Longest answer, in tokens."""
    dtype: str = "bfloat16"
    """Weights' type in vLLM."""
    chat_template: str | None = None
    """Jinja text or file that wraps messages for this model; the tokenizer's own where empty."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only with a pinned revision."""
    base_url: Annotated[str | None, _HOW] = None
    """OpenAI-compatible endpoint. Without one, vLLM runs the model inside Ray actors."""
    api_key_env: Annotated[str | None, _HOW] = None
    """Name of the environment variable that holds the endpoint's key."""
    prices: Annotated[Prices, _HOW] = Prices()
    """What the endpoint charges."""
    max_in_flight: Annotated[Positive, _HOW] = 64
    """Concurrent calls per actor."""
    timeout: Annotated[float, _HOW] = 120.0
    """Seconds until a call over HTTP is given up and sent again."""
    retries: Annotated[int, _HOW] = 5
    """Further attempts after 429, 5xx, a timeout or a lost connection."""
    engine: Annotated[dict[str, Any], _HOW] = {}
    """Further vLLM engine arguments (tensor_parallel_size, gpu_memory_utilization, max_model_len)."""
    actors: Annotated[Positive, _HOW] = 1
    """Ray actors that talk to this model."""
    num_cpus: Annotated[float, _HOW] = 1.0
    """Ray CPUs per actor."""
    num_gpus: Annotated[float, _HOW] = 0.0
    """Ray GPUs per actor."""

    @model_validator(mode="after")
    def _pinned_code(self) -> "ModelPart":
        if self.trust_remote_code and not self.revision:
            raise ValueError(
                f"trust_remote_code of {self.model!r} needs `revision`: pin the commit whose code you read"
            )
        return self


class SourcePart(Part):
    """Where rows come from: the embedded world, a hub data set, or files."""

    source: str
    """`tiny`, `hub:<owner>/<name>[:<config>]`, or a path or glob of .jsonl, .jsonl.gz or .parquet files."""
    revision: str | None = None
    """Commit of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    license: str = "unknown"
    """Licence of the rows."""
    limit: Positive | None = None
    """Read at most so many rows, in file order."""


class Seeds(Part):
    """The human-made data that the recipe starts from."""

    dolly: tuple[SourcePart, ...] = ()
    """Instructions in the shape of databricks-dolly-15k: seeds of LaMini and Evol-Instruct."""
    flan: tuple[SourcePart, ...] = ()
    """Queries in the shape of the FLAN collection's dumps: seeds of Orca."""
    hh_rlhf: tuple[SourcePart, ...] = ()
    """Transcripts in the shape of Anthropic/hh-rlhf: hh-sft and dpo."""


class Lamini(Part):
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
    topics: str | None = None
    """File with one topic a line, in place of the packaged list."""


class EvolInstruct(Part):
    """Evol-Instruct (arXiv 2304.12244): each seed is rewritten, epoch after epoch."""

    seeds: Positive = 600
    """Seeds that are evolved, drawn from `seeds.dolly`."""
    epochs: Positive = 4
    """Evolutions of each seed, one after the other."""
    operations: dict[Operation, float] = {
        "constraints": 1, "deepen": 1, "concretise": 1, "reasoning": 1, "complicate_input": 1, "breadth": 1,
    }  # fmt: skip
    """Weight of each operation; the paper draws them uniformly."""


class Mixture(Part):
    """How one FLAN sub-mixture is sampled for Orca."""

    rows: int | None = None
    """Rows drawn; all where empty."""
    per_task: int | None = None
    """At most so many rows of a task."""
    stratified: bool = False
    """Pick a task uniformly, then a query from it without replacement, until enough are drawn."""


class Orca(Part):
    """Orca (arXiv 2306.02707): FLAN queries, each answered under one of 16 system messages."""

    rows: Positive | None = None
    """Queries drawn over all sub-mixtures, in turn; all that the mixtures allow where empty."""
    mixtures: dict[Literal["CoT", "NIV2", "Flan2021", "T0"], Mixture] = {
        "CoT": Mixture(), "NIV2": Mixture(per_task=300),
        "Flan2021": Mixture(stratified=True, per_task=1_000_000), "T0": Mixture(stratified=True),
    }  # fmt: skip
    """Sampling by sub-mixture, as in the paper's table 3."""


class Generate(Part):
    """The schemes; one that is null is left out."""

    lamini: Lamini | None = Lamini()
    evol_instruct: EvolInstruct | None = EvolInstruct()
    orca: Orca | None = Orca()


class Filter(Part):
    """Free gates, then the judges."""

    accept_rating: float = 4.0
    """Lowest rating, from 1 to 5, that a judge accepts."""
    rubrics: dict[Literal["lamini", "evol_instruct", "orca"], str] = {}
    """A text file by scheme in place of the packaged rubric."""
    judge: bool = True
    """Whether judges are asked at all; without them, what passes the gates is accepted (for ablations)."""


class Base(Part):
    """The model that is trained."""

    model: str
    """Hugging Face name, local folder, or `tiny-base`."""
    revision: str | None = None
    """Commit of a Hugging Face model."""
    license: str = "unknown"
    """Licence of the weights."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the unquantised weights: compute, merge and the saved model."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only with a pinned revision."""


class Lora(Part):
    """The adapter of one training stage."""

    r: Positive = 16
    """Rank."""
    alpha: float = 16
    """Scale; the update is multiplied by alpha / r."""
    dropout: Share = 0.05
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Names of the linear layers that get an adapter."""


class Training(Part):
    """One training stage."""

    learning_rate: float
    """Peak learning rate."""
    schedule: str = "constant_with_warmup"
    """Learning-rate schedule, by transformers' name."""
    warmup_ratio: Share = 0.03
    """Share of the steps that warm up."""
    epochs: float = 1.0
    """Passes over the rows."""
    batch: Positive = 16
    """Rows in an optimiser step, over all workers and accumulation steps."""
    max_length: Positive = 2048
    """Longest row in tokens; a longer one is left out and counted."""
    max_grad_norm: float = 0.3
    """Gradient clipping."""
    limit: Positive | None = None
    """Train on the first so many rows."""
    load_in_4bit: bool = True
    """QLoRA: the base in NF4 with double quantisation."""
    micro_batch: Annotated[Positive, _HOW] = 4
    """Rows in a forward pass of one worker."""
    workers: Annotated[Positive, _HOW] = 1
    """Ray Train workers."""
    cpus_per_worker: Annotated[float, _HOW] = 1.0
    """Ray CPUs per worker."""
    gpus_per_worker: Annotated[float, _HOW] = 0.0
    """Ray GPUs per worker."""
    zero_stage: Annotated[Literal[0, 2, 3], _HOW] = 0
    """DeepSpeed ZeRO stage; 0 is plain data parallel."""
    gradient_checkpointing: Annotated[bool, _HOW] = False
    """Recompute activations in the backward pass."""
    checkpoint_every: Annotated[Positive, _HOW] = 200
    """Steps between checkpoints from which a killed stage goes on."""
    max_failures: Annotated[int, _HOW] = 3
    """Worker failures after which Ray Train gives up."""
    report_to: Annotated[tuple[str, ...], _HOW] = ()
    """Trackers by transformers' names: wandb, mlflow, tensorboard."""

    @model_validator(mode="after")
    def _no_sharded_4bit(self) -> "Training":
        if self.load_in_4bit and self.zero_stage == 3:
            raise ValueError(
                "load_in_4bit with zero_stage 3: ZeRO-3 cannot shard bitsandbytes' 4-bit weights. "
                "Use zero_stage 2, or load_in_4bit: false"
            )
        return self


class Sft(Training):
    """Supervised fine-tuning on the accepted rows, one adapter carried through the schemes in order."""

    learning_rate: float = 2e-4
    lora: Lora = Lora()
    order: tuple[Literal["lamini", "orca", "evol_instruct"], ...] = ("lamini", "orca", "evol_instruct")
    """The schemes, in the order of training."""


class HhSft(Training):
    """Supervised fine-tuning on the chosen side of HH-RLHF: a new adapter on merged sft."""

    learning_rate: float = 2e-4
    lora: Lora = Lora()


class Align(Training):
    """Preference alignment: goes on with hh-sft's adapter, whose frozen copy is the reference."""

    learning_rate: float = 5e-6
    method: Literal["dpo"] = "dpo"
    """How pairs are learned from."""
    beta: float = 0.1
    """DPO's beta: how strongly the policy is held to the reference (arXiv 2305.18290, eq. 7)."""


class Serve(Part):
    """The endpoint that hosts the checkpoints."""

    mode: Literal["joined"] = "joined"
    """`joined`: one engine, the untouched base with one LoRA per checkpoint."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the served weights."""
    host: Annotated[str, _HOW] = "127.0.0.1"
    """Address that the endpoint binds to."""
    port: Annotated[int, _HOW] = 8000
    """Port of `bezoar serve`; evaluate takes a free one."""
    engine: Annotated[dict[str, Any], _HOW] = {}
    """Further vLLM engine arguments."""
    num_cpus: Annotated[float, _HOW] = 1.0
    """Ray CPUs per replica."""
    num_gpus: Annotated[float, _HOW] = 0.0
    """Ray GPUs per replica."""


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
    include_path: str | None = None
    """Folder of further task files; `tiny` for the embedded ones."""
    apply_chat_template: bool = False
    """Ask through the recipe's chat template; the published leaderboards send the bare prompt."""
    concurrency: Annotated[Positive, _HOW] = 16
    """Requests in flight."""


class MtBench(Part):
    """MT-Bench single grading (arXiv 2306.05685), judged by the first judge unless `judge` names another."""

    questions: str = "tiny"
    """FastChat's question.jsonl, or `tiny` for the embedded ones."""
    references: str | None = None
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
    heldout_pairs: Positive = 200
    """HH-RLHF pairs kept out of training to score every checkpoint on."""


class Recipe(Part):
    """One whole recipe."""

    name: str
    """Name of the run: it goes to `runs/<name>` by default."""
    seed: int = 0
    """Seed of every draw; part of each row's id."""
    chat_template: str = "alpaca"
    """Jinja file with generation marks, or the packaged `alpaca`; used alike by training, serving and evaluation."""
    teacher: ModelPart
    """Writes the synthetic rows."""
    judges: tuple[ModelPart, ...]
    """Rate the rows in place of people; a row must please the first."""
    base: Base
    """The model that is trained."""
    seeds: Seeds
    generate: Generate = Generate()
    filter: Filter = Filter()
    sft: Sft = Sft()
    hh_sft: HhSft = HhSft()
    align: Align = Align()
    serve: Serve = Serve()
    evaluate: Evaluate = Evaluate()

    @property
    def mt_bench_judge(self) -> ModelPart:
        """The judge of MT-Bench answers."""
        return (self.evaluate.mt_bench and self.evaluate.mt_bench.judge) or self.judges[0]

    @property
    def template(self) -> str:
        """The text of the chat template."""
        packaged = resources.files("bezoar_ray") / "recipes" / f"{self.chat_template}.jinja"
        return packaged.read_text() if packaged.is_file() else _read(self.chat_template, "chat_template")


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
        raise RecipeError(f"no recipe {name!r}: give a path to a YAML file, or one of {', '.join(recipe_names())}")
    try:
        tree = yaml.safe_load(packaged.read_text() if packaged.is_file() else _read(name, "recipe"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {error}") from error
    for override in overrides:
        _set(tree, override)
    return parse_recipe(tree, name)


def parse_recipe(tree: Any, origin: str) -> Recipe:
    """A checked recipe from a tree of plain values; `origin` is named in errors."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{origin}: {_explain(e)}" for e in error.errors())) from error


def _read(path: str, field: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise RecipeError(f"{field}: cannot read {path!r}: {error.strerror}") from error


def _set(tree: dict[str, Any], override: str) -> None:
    path, found, value = override.partition("=")
    if not found:
        raise RecipeError(f"--set {override!r}: expected key.path=value")
    *parents, last = path.split(".")
    for key in parents:
        tree = _child(tree, key, path)
    if isinstance(tree, list):
        tree[_index(tree, last, path)] = yaml.safe_load(value)
    else:
        tree[last] = yaml.safe_load(value)


def _child(tree: Any, key: str, path: str) -> Any:
    if isinstance(tree, list):
        return tree[_index(tree, key, path)]
    if tree.get(key) is None:
        tree[key] = {}
    if not isinstance(tree[key], dict | list):
        raise RecipeError(f"--set {path}: {key!r} is a value, not a section")
    return tree[key]


def _index(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise RecipeError(f"--set {path}: {key!r} is not an index from 0 to {len(items) - 1}")
    return int(key)


def _explain(error: Any) -> str:
    """One line for one fault: where, what was found, what to do."""
    where = ".".join(str(step) for step in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _keys_at(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{where}: unknown key. " + (f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}")
    if error["type"] == "missing":
        return f"{where}: missing; add it"
    found = "" if isinstance(error["input"], dict | BaseModel) else f" (found {error['input']!r})"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}{found}"


def _keys_at(loc: tuple[Any, ...]) -> list[str]:
    part: Any = Recipe
    for step in loc:
        if isinstance(step, str) and step in part.model_fields:
            part = _part_in(part.model_fields[step].annotation) or part
    return list(part.model_fields)


def _part_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for item in get_args(annotation) if (found := _part_in(item))), None)
