"""Preflight: try the inputs of a run before any call is paid for.

It reads the first rows of each source with the real reader, renders the real chat
templates, and lets lm-eval look up its tasks. It writes nothing and pays for nothing.
What cannot be tried on this machine, such as a gated model or data from the hub, is
listed as not tried.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bezoar_ray import sources
from bezoar_ray.data.schema import Preference, Rating, Seed
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import (
    CustomScheme,
    ModelSection,
    RatingSource,
    Recipe,
    SourceSection,
)
from bezoar_ray.runtime.caches import hub_cache, unwritable
from bezoar_ray.runtime.embedded_world import is_world_missing
from bezoar_ray.stages import training_stages, working_stages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")
ROWS = 100
"""Rows that are read from each source."""
_SECONDS = 30.0  # that lm-eval may take
_HUB_SECONDS = 5.0  # that the hub may take to answer
_HUB = "https://huggingface.co"
_SYSTEM = {"role": "system", "content": "Be brief."}
_CONVERSATION = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2."},
]


@dataclass
class Findings:
    """The results of a check: sentences that name field, value and remedy."""

    problems: list[str] = field(default_factory=list)
    """A stage would fail."""
    notes: list[str] = field(default_factory=list)
    """A stage would run, and may not do what was intended."""
    unchecked: list[str] = field(default_factory=list)
    """It could not be tried on this machine."""

    def attempt(self, check: Callable[[], T]) -> T | None:
        """Return the result of a check; enter its error as a problem."""
        try:
            return check()
        except BezoarError as error:
            self.problems.append(str(error))
        except (OSError, ValueError, ImportError) as error:
            # Libraries raise these for a file that is missing or incomplete here.
            self.unchecked.append(_on_one_line(error))
        return None


def check(recipe: Recipe, stages: Iterable[str], offline: bool = False) -> Findings:
    """Try the inputs of the stages.

    Args:
        recipe: The recipe. Parts of the embedded world are known to work, and skipped.
        stages: The stages that would run.
        offline: Skip what needs the hub, and list it as not tried.
    """
    findings = Findings()
    stages = set(stages)
    _check_sources(recipe, stages, findings, offline)
    if stages & {"generate", "filter"}:
        _check_templates(recipe, stages, findings)
    if stages & set(training_stages()):
        _check_base(recipe, stages, findings)
    if "filter" in stages:
        for scheme in recipe.schemes:
            findings.attempt(partial(recipe.filter.rubric, scheme))
            if scheme not in recipe.sft_order:
                findings.notes.append(
                    f"sft.order does not name {scheme!r}: its rows are generated and "
                    "judged, but not trained on"
                )
    lamini = recipe.generate.lamini
    if "generate" in stages and lamini:
        findings.attempt(lambda: lamini.topics_text)
    if "generate" in stages:
        _check_custom_schemes(recipe, findings)
    if "evaluate" in stages:
        _check_tasks(recipe, findings)
        _check_questions(recipe, findings)
    _check_caches(recipe, stages, findings)
    if not offline:
        _check_hub(recipe, stages, findings)
    return findings


def _check_custom_schemes(recipe: Recipe, findings: Findings) -> None:
    """Load the function of each custom scheme, as the actors will."""
    from bezoar_ray.generate.custom_scheme import load

    def load_function(section: CustomScheme) -> object:
        return load(section.source, section.function)

    for section in recipe.generate.own.values():
        findings.attempt(partial(load_function, section))


def _on_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


# Sources.


Source = tuple[str, tuple[SourceSection, ...], Callable[[Any], Any]]
"""The field of the recipe, its sections, and the reader of one section."""


def _read_seeds(
    kind: Literal["dolly", "flan"], section: SourceSection
) -> sources.Loaded[Seed]:
    return sources.read([section], kind)


def _read_pairs(section: SourceSection) -> Any:
    return sources.read_pairs([section])


def _read_ratings(section: RatingSource) -> sources.Loaded[Rating]:
    return sources.read_ratings([section])


def _read_preferences(section: SourceSection) -> sources.Loaded[Preference]:
    return sources.read_preferences([section])


def _read_bench_items(
    version: Literal["one", "two"], section: SourceSection
) -> sources.Loaded[Any]:
    """Read items of RewardBench. A malformed one is an error, as it is in the stage."""
    from bezoar_ray.evaluate.reward_bench.items import load_items

    items: list[Any] = load_items(section, version)
    return sources.Loaded(items, [])


def _sources(recipe: Recipe, stages: set[str]) -> Iterator[Source]:
    """Yield all sources that the stages read."""
    seeds = {"dolly": recipe.seeds.dolly, "flan": recipe.seeds.flan}
    if "generate" in stages:
        for kind in recipe.seeds_in_use:
            yield f"seeds.{kind}", seeds[kind], partial(_read_seeds, kind)
    if "sft" in stages:
        for name, section in recipe.sft.data.items():
            yield f"sft.data.{name}", (section,), partial(sources.read_own, name=name)
    if stages & {"hh-sft", "align"}:
        yield "seeds.hh_rlhf", recipe.seeds.hh_rlhf, _read_pairs
    if "rm" in stages and recipe.rm:
        yield "seeds.helpsteer", recipe.seeds.helpsteer, _read_ratings
        yield "seeds.preferences", recipe.seeds.preferences, _read_preferences
    bench = recipe.evaluate.reward_bench
    if "evaluate" in stages and bench:
        for version, section in bench.sources.items():
            field = f"evaluate.reward_bench.{version}"
            yield field, (section,), partial(_read_bench_items, version)


def _check_sources(
    recipe: Recipe, stages: set[str], findings: Findings, offline: bool
) -> None:
    for name, sections, read in _sources(recipe, stages):
        for section in sections:
            if section.source == "tiny":
                continue
            if section.source.startswith("hub:") and (offline or _is_offline()):
                findings.unchecked.append(
                    f"{name}: {section.source}, which comes from the hub"
                )
                continue
            limit = min(ROWS, section.limit or ROWS)
            first_rows = section.model_copy(update={"limit": limit})
            loaded = findings.attempt(partial(read, first_rows))
            if loaded:
                _check_rows(name, section.source, loaded, findings)


def _check_rows(
    field: str, source: str, loaded: sources.Loaded[Any], findings: Findings
) -> None:
    count = len(loaded.rows) + len(loaded.failed)
    first_failure = f"The first: {loaded.failed[0]}" if loaded.failed else "It is empty"
    if not loaded.rows and count < ROWS:
        findings.problems.append(
            f"{field}: none of the {count} rows of {source!r} can be read. "
            f"{first_failure}"
        )
    elif loaded.failed:
        # Only a note, even if all failed: a long source may have usable rows later on.
        findings.notes.append(
            f"{field}: {len(loaded.failed)} of the first {count} rows of {source!r} "
            f"are left out. {first_failure}"
        )


# Templates and tokenizers.


def _check_templates(recipe: Recipe, stages: set[str], findings: Findings) -> None:
    """Try the chat templates of teachers and judges that run on vLLM here.

    A model behind an endpoint applies its own template. Judges get a system message.
    Teachers get one from LaMini and Orca only.
    """
    has_system = bool(recipe.generate.lamini or recipe.generate.orca)
    models: list[tuple[str, ModelSection, bool]] = []
    if "generate" in stages:
        models += [("teacher", teacher, has_system) for teacher in recipe.teachers]
    if "filter" in stages and recipe.filter.judge:
        models += [("judge", judge, True) for judge in recipe.judges]
    for role, model, with_system in models:
        if not (model.base_url or model.model.startswith("tiny-")):
            _check_template(role, model, with_system, findings)


def _check_template(
    role: str, model: ModelSection, with_system: bool, findings: Findings
) -> None:
    tokenizer = _tokenizer(model.model, model.revision, model.trust_remote_code)
    if tokenizer is None:
        findings.unchecked.append(
            f"{role} {model.model}: its chat template, which is not on this machine"
        )
        return
    question = _CONVERSATION[0]
    messages = [_SYSTEM, question] if with_system else [question]
    error = _template_error(tokenizer, model.template, messages)
    if error:
        described = "a system message and a question" if with_system else "a question"
        findings.problems.append(
            f"{role} {model.model}: its chat template does not take {described}: "
            f"{error}. Set another template in {role}.chat_template"
        )


def _tokenizer(
    model: str, revision: str | None, trust_remote_code: bool
) -> "PreTrainedTokenizerBase | None":
    """Load a tokenizer from this machine; None if it is not here, or incomplete."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            model,
            revision=revision,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )
    except Exception:  # transformers raises many types for a missing file
        return None


def _template_error(
    tokenizer: "PreTrainedTokenizerBase",
    template: str | None,
    messages: list[dict[str, str]],
) -> str:
    """Return why a template cannot render the messages; "" if it can."""
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template can raise anything
        return _on_one_line(error)
    # A template may leave out what it does not expect, without an error.
    if messages[-1]["content"] not in text:
        return "its output lacks the question"
    return ""


def _check_base(recipe: Recipe, stages: set[str], findings: Findings) -> None:
    """Try the recipe's chat template with the tokenizer of the base model."""
    base = recipe.base
    if base.model == "tiny-base":
        return
    from bezoar_ray.train.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(recipe, local_files_only=True)
    except BezoarError as error:
        findings.problems.append(str(error))
        return
    except Exception:  # transformers raises many types for a missing file
        findings.unchecked.append(
            f"base {base.model}: its tokenizer, which is not on this machine"
        )
        return
    # Rows of Orca have a system message, and sft trains on them.
    has_system = "sft" in stages and recipe.generate.orca
    messages = [_SYSTEM, *_CONVERSATION] if has_system else _CONVERSATION
    _check_labels(recipe, tokenizer, messages, findings)


def _check_labels(
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, str]],
    findings: Findings,
) -> None:
    """Check that exactly the answers, with their end, would be trained on."""
    from bezoar_ray.train.encoding import IGNORED, encode

    field_and_value = f"chat_template {recipe.chat_template!r}"
    try:
        all_labels = encode(tokenizer, messages)["labels"]
    except Exception as error:  # a template can raise anything
        findings.problems.append(
            f"{field_and_value}: it does not take the messages of a training row: "
            f"{_on_one_line(error)}"
        )
        return
    labels = [label for label in all_labels if label != IGNORED]
    text = tokenizer.decode(labels)
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    if any(answer not in text for answer in answers):
        findings.problems.append(
            f"{field_and_value}: its answers are not between {{% generation %}} and "
            "{% endgeneration %}, so nothing would be trained on"
        )
    elif tokenizer.eos_token_id not in labels:
        findings.notes.append(
            f"{field_and_value}: an answer does not end with {tokenizer.eos_token!r} "
            "between its generation marks, so the model does not learn to end"
        )


# Evaluation.


def _check_tasks(recipe: Recipe, findings: Findings) -> None:
    """Let lm-eval look up the tasks, in a process of its own.

    Its import takes seconds, and a task can load any module.
    """
    harness = recipe.evaluate.harness
    if not harness or not harness.all_tasks or harness.include_path == "tiny":
        return
    request = {
        "include_path": harness.include_path,
        "tasks": [task.model_dump() for task in harness.all_tasks],
        "context": recipe.serve.engine.get("max_model_len"),
    }
    # The data of a task may be gigabytes, so nothing is downloaded.
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        process = subprocess.run(
            [sys.executable, "-m", "bezoar_ray.evaluate.task_check"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=os.environ | offline,
        )
    except subprocess.TimeoutExpired:
        findings.unchecked.append(
            f"evaluate.harness: lm-eval did not check its tasks within {_SECONDS:g} s"
        )
        return
    try:
        reply = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        error = process.stderr.strip()[-300:]
        findings.problems.append(f"evaluate.harness: lm-eval does not start: {error}")
        return
    findings.problems += reply["problems"]
    findings.unchecked += reply["unchecked"]


def _check_questions(recipe: Recipe, findings: Findings) -> None:
    """Read the questions, reference answers and judge prompts of MT-Bench."""
    bench = recipe.evaluate.mt_bench
    if not bench:
        return
    from bezoar_ray.evaluate.mt_bench.bench import Bench
    from bezoar_ray.evaluate.mt_bench.fastchat_prompts import load_prompts

    for name in (bench.questions, bench.references, bench.prompts):
        if name and name != "tiny" and not Path(name).is_file():
            return  # `doctor.missing_files` reports it
    if bench.questions == "tiny":  # complete, and perhaps not built yet
        if bench.prompts:
            findings.attempt(partial(load_prompts, Path(bench.prompts)))
        return
    loaded = Bench(bench, ())
    questions = findings.attempt(lambda: loaded.questions) or []
    if questions:
        findings.attempt(lambda: loaded.prompts)
    _check_categories(questions, findings)


def _check_categories(questions: Iterable[Any], findings: Findings) -> None:
    """Note questions without a reference answer, and categories unknown to MT-Bench."""
    from bezoar_ray.sources.mt_bench_files import GUIDED, KNOWN

    unguided = []
    for question in questions:
        if question.category in GUIDED and not question.references:
            unguided.append(question.id)
    if unguided:
        first_ids = ", ".join(map(str, unguided[:5]))
        findings.notes.append(
            f"evaluate.mt_bench.references: {len(unguided)} questions about "
            f"{', '.join(GUIDED)} have no whole reference answer ({first_ids}), and "
            "are judged without one"
        )
    unknown = sorted({question.category for question in questions} - set(KNOWN))
    if unknown:
        findings.notes.append(
            f"evaluate.mt_bench.questions: MT-Bench has no category "
            f"{', '.join(unknown)}. Their answers are sampled at the temperature in "
            "evaluate.mt_bench.temperatures, or greedily if it has none"
        )


# Caches and the hub.


def _check_caches(recipe: Recipe, stages: set[str], findings: Findings) -> None:
    """Check that the caches that the stages fill can be written."""
    if "RAY_ADDRESS" in os.environ:
        return  # the nodes of a cluster have caches of their own
    # The filter reads the tasks of lm-eval to keep their items out of the data.
    reads_tasks = "evaluate" in stages or (
        "filter" in stages and recipe.filter.decontaminate
    )
    # A report reads the run directory alone.
    builds_world = bool(stages & set(working_stages())) and is_world_missing(recipe)
    findings.problems += unwritable(
        builds_world,
        any(_from_hub(recipe, stages)),
        datasets=reads_tasks and recipe.evaluate.harness is not None,
    )


def _check_hub(recipe: Recipe, stages: set[str], findings: Findings) -> None:
    """Check that the hub can be reached if something has to come from it."""
    needed = list(dict.fromkeys(_from_hub(recipe, stages)))
    if not needed:
        return
    listed = ", ".join(needed)
    if _is_offline():
        findings.problems.append(
            f"HF_HUB_OFFLINE is set, and these are not on this machine: {listed}"
        )
        return
    error = _hub_error()
    if not error:
        return
    message = (
        f"the Hugging Face hub does not answer ({error}), and these are not on this "
        f"machine: {listed}"
    )
    if "RAY_ADDRESS" in os.environ:  # the nodes of the cluster may reach it
        findings.unchecked.append(message)
    else:
        findings.problems.append(message)


def _from_hub(recipe: Recipe, stages: set[str]) -> Iterator[str]:
    """Yield the models that are not on this machine, and all data sets of the hub.

    Data sets are streamed each time, so a cache does not help.
    """
    models = []
    if "generate" in stages:
        models += [model.model for model in recipe.teachers if not model.base_url]
    if "filter" in stages and recipe.filter.judge:
        models += [model.model for model in recipe.judges if not model.base_url]
    if stages & {*training_stages(), "evaluate"}:
        models.append(recipe.base.model)
    for model in models:
        # A path may exist on the workers of a cluster only.
        is_named_by_hub = not model.startswith(("tiny-", "/", ".", "~"))
        if is_named_by_hub and not _is_on_this_machine(model):
            yield model
    for _, sections, _ in _sources(recipe, stages):
        for section in sections:
            if section.source.startswith("hub:"):
                yield section.source


def _is_on_this_machine(model: str) -> bool:
    """Whether a model is a folder, or in the hub's cache."""
    cached = hub_cache() / f"models--{model.replace('/', '--')}/snapshots"
    return Path(model).expanduser().is_dir() or any(cached.glob("*/config.json"))


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")


def _hub_error() -> str:
    """Return why the hub cannot be reached; "" if it gives any answer at all."""
    address = os.environ.get("HF_ENDPOINT") or _HUB
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=_HUB_SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return f"{address}: {error}"
