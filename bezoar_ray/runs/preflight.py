"""What a recipe would fail on after money is spent, tried beforehand: sources, templates, tasks, questions, the hub.

It reads the first rows of each source by the real reader, renders the real templates, and lets lm-eval look at its
tasks. Nothing is written or paid for. What cannot be tried here (a gated model, data that come from the hub) is named.
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
from bezoar_ray.data.schema import Seed
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import ModelSection, Recipe, SourceSection
from bezoar_ray.runtime.caches import hub_cache, unwritable
from bezoar_ray.runtime.embedded_world import is_world_missing
from bezoar_ray.stages import training_stages, working_stages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")
ROWS = 100
"""Of each source."""
_SECONDS = 30.0  # that lm-eval may take
_REACH_SECONDS = 5.0
_HUB = "https://huggingface.co"
_SYSTEM = {"role": "system", "content": "Be brief."}
_TALK = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2."},
]


@dataclass
class Findings:
    """What was found, each in a sentence that names field, value and remedy."""

    problems: list[str] = field(default_factory=list)
    """A stage would fail on it."""
    notes: list[str] = field(default_factory=list)
    """A stage would run, and may not do what was meant."""
    unchecked: list[str] = field(default_factory=list)
    """It could not be tried here."""

    def attempt(self, check: Callable[[], T]) -> T | None:
        """What a check returns; its error is a problem."""
        try:
            return check()
        except BezoarError as error:
            self.problems.append(str(error))
        except (
            OSError,
            ValueError,
            ImportError,
        ) as error:  # of files that are not whole
            self.unchecked.append(
                f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            )
        return None


def check(recipe: Recipe, stages: Iterable[str], offline: bool = False) -> Findings:
    """Try what the stages read.

    Args:
        recipe: whose parts are tried. The embedded world's are known to work, and are left out.
        stages: those that are to be carried out.
        offline: leave out what needs the hub, and name it.
    """
    found, stages = Findings(), set(stages)
    _check_sources(recipe, stages, found, offline)
    if stages & {"generate", "filter"}:
        _check_templates(recipe, stages, found)
    if stages & set(training_stages()):
        _check_base(recipe, stages, found)
    if "filter" in stages:
        for scheme in recipe.schemes:
            found.attempt(partial(recipe.filter.rubric, scheme))
    if "generate" in stages and (lamini := recipe.generate.lamini):
        found.attempt(lambda: lamini.topics_text)
    if "evaluate" in stages:
        _check_tasks(recipe, found)
        _check_questions(recipe, found)
    _check_caches(recipe, stages, found)
    if not offline:
        _check_hub(recipe, stages, found)
    return found


# Sources.


Source = tuple[str, tuple[SourceSection, ...], Callable[[SourceSection], Any]]
"""Field, parts and reader."""


def _read_seeds(
    kind: Literal["dolly", "flan"], part: SourceSection
) -> sources.Loaded[Seed]:
    return sources.read([part], kind)


def _sources(recipe: Recipe, stages: set[str]) -> Iterator[Source]:
    """All that the stages read."""
    kinds = {"dolly": recipe.seeds.dolly, "flan": recipe.seeds.flan}
    if "generate" in stages:
        for kind in recipe.seeds_in_use:
            yield f"seeds.{kind}", kinds[kind], partial(_read_seeds, kind)
    if "sft" in stages:
        for name, part in recipe.sft.data.items():
            yield f"sft.data.{name}", (part,), partial(sources.read_own, name=name)
    if stages & {"hh-sft", "align"}:
        yield (
            "seeds.hh_rlhf",
            recipe.seeds.hh_rlhf,
            lambda part: sources.read_pairs([part]),
        )


def _check_sources(
    recipe: Recipe, stages: set[str], found: Findings, offline: bool
) -> None:
    for name, parts, read in _sources(recipe, stages):
        for part in parts:
            if part.source == "tiny":
                continue
            if part.source.startswith("hub:") and (offline or _is_offline()):
                found.unchecked.append(
                    f"{name}: {part.source}, which comes from the hub"
                )
                continue
            first = part.model_copy(update={"limit": min(ROWS, part.limit or ROWS)})
            loaded = found.attempt(partial(read, first))
            if not loaded:
                continue
            count = len(loaded.rows) + len(loaded.failed)
            if not loaded.rows and count < ROWS:
                why = (
                    f"The first: {loaded.failed[0]}" if loaded.failed else "It is empty"
                )
                found.problems.append(
                    f"{name}: none of the {count} rows of {part.source!r} can be read. {why}"
                )
            elif loaded.failed:  # of a long source, the rows that follow may be better
                found.notes.append(
                    f"{name}: {len(loaded.failed)} of the first {count} rows of {part.source!r} are left out. "
                    f"The first: {loaded.failed[0]}"
                )


# Templates and tokenizers.


def _check_templates(recipe: Recipe, stages: set[str], found: Findings) -> None:
    """Of models that we run. Judges are given a system message, and teachers by LaMini and Orca."""
    generate = recipe.generate
    with_system = bool(generate.lamini or generate.orca)
    models: list[tuple[str, ModelSection, bool]] = [
        ("teacher", part, with_system)
        for part in recipe.teachers
        if "generate" in stages
    ]
    models += [
        ("judge", part, True)
        for part in recipe.judges
        if "filter" in stages and recipe.filter.judge
    ]
    for role, part, system in models:
        if part.base_url or part.model.startswith("tiny-"):
            continue
        tokenizer = _tokenizer(part.model, part.revision, part.trust_remote_code)
        if tokenizer is None:
            found.unchecked.append(
                f"{role} {part.model}: its chat template, which is not on this machine"
            )
            continue
        messages = [*([_SYSTEM] if system else []), _TALK[0]]
        if error := _template_error(tokenizer, part.template, messages):
            asked = "a system message and a question" if system else "a question"
            found.problems.append(
                f"{role} {part.model}: its chat template does not take {asked}: {error}. "
                f"Give another one in {role}.chat_template"
            )


def _tokenizer(
    model: str, revision: str | None, trust_remote_code: bool
) -> "PreTrainedTokenizerBase | None":
    """A tokenizer from this machine; None where it is not, or not whole."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            model,
            revision=revision,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )
    except Exception:  # of a file that is missing transformers says so in many ways
        return None


def _template_error(
    tokenizer: "PreTrainedTokenizerBase",
    template: str | None,
    messages: list[dict[str, str]],
) -> str:
    try:
        said = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template can raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return (
        ""
        if messages[-1]["content"] in said
        else "the question is not in what it renders"
    )


def _check_base(recipe: Recipe, stages: set[str], found: Findings) -> None:
    base = recipe.base
    if base.model == "tiny-base":
        return
    from bezoar_ray.train.encoding import IGNORED, encode
    from bezoar_ray.train.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(recipe, local_files_only=True)
    except BezoarError as error:
        found.problems.append(str(error))
        return
    except Exception:  # of a file that is missing transformers says so in many ways
        found.unchecked.append(
            f"base {base.model}: its tokenizer, which is not on this machine"
        )
        return
    messages = [
        *([_SYSTEM] if "sft" in stages and recipe.generate.orca else []),
        *_TALK,
    ]
    try:
        labels = [
            label for label in encode(tokenizer, messages)["labels"] if label != IGNORED
        ]
    except Exception as error:  # a template can raise anything
        found.problems.append(
            f"chat_template {recipe.chat_template!r}: it does not take the messages that are trained on: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
        return
    answers = tokenizer.decode(labels)
    if not all(
        turn["content"] in answers for turn in _TALK if turn["role"] == "assistant"
    ):
        found.problems.append(
            f"chat_template {recipe.chat_template!r}: its answers are not between {{% generation %}} and "
            "{% endgeneration %}, so nothing would be trained on"
        )
    elif tokenizer.eos_token_id not in labels:
        found.notes.append(
            f"chat_template {recipe.chat_template!r}: an answer does not end with {tokenizer.eos_token!r} between its "
            "generation marks, so the model does not learn to end"
        )


# Evaluation.


def _check_tasks(recipe: Recipe, found: Findings) -> None:
    """By lm-eval, in a process of its own: it takes seconds to import, and may load anything."""
    harness = recipe.evaluate.harness
    if not harness or not harness.all_tasks or harness.include_path == "tiny":
        return
    asked = {
        "include_path": harness.include_path,
        "tasks": [task.model_dump() for task in harness.all_tasks],
        "context": recipe.serve.engine.get("max_model_len"),
    }
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }  # a task's data may be gigabytes
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bezoar_ray.evaluate.task_check"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=os.environ | offline,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found.unchecked.append(
            f"evaluate.harness: lm-eval did not look at its tasks within {_SECONDS:g} s"
        )
        return
    except (IndexError, ValueError):
        found.problems.append(
            f"evaluate.harness: lm-eval does not start: {done.stderr.strip()[-300:]}"
        )
        return
    found.problems += answer["problems"]
    found.unchecked += answer["unchecked"]


def _check_questions(recipe: Recipe, found: Findings) -> None:
    bench = recipe.evaluate.mt_bench
    if not bench:
        return
    from bezoar_ray.evaluate.mt_bench.bench import Bench
    from bezoar_ray.evaluate.mt_bench.fastchat_prompts import load_prompts
    from bezoar_ray.sources.mt_bench_files import GUIDED, KNOWN

    named = [
        name
        for name in (bench.questions, bench.references, bench.prompts)
        if name and name != "tiny"
    ]
    if not all(Path(name).is_file() for name in named):
        return  # named by those who look for files
    if bench.questions == "tiny":  # known to be whole, and perhaps not built yet
        if bench.prompts:
            found.attempt(partial(load_prompts, Path(bench.prompts)))
        return
    asked = Bench(bench, ())
    questions = found.attempt(lambda: asked.questions) or []
    if questions:
        found.attempt(lambda: asked.prompts)
    if unguided := [
        question.id
        for question in questions
        if question.category in GUIDED and not question.references
    ]:
        found.notes.append(
            f"evaluate.mt_bench.references: {len(unguided)} questions about {', '.join(GUIDED)} have no whole "
            f"reference answer ({', '.join(map(str, unguided[:5]))}), and are judged without one"
        )
    if unknown := sorted({question.category for question in questions} - set(KNOWN)):
        found.notes.append(
            f"evaluate.mt_bench.questions: MT-Bench has no category {', '.join(unknown)}; their answers are drawn at "
            "the temperature in evaluate.mt_bench.temperatures, or greedily"
        )


# Caches and the hub.


def _check_caches(recipe: Recipe, stages: set[str], found: Findings) -> None:
    """Whether what is built, or comes from the hub, has a place; on a cluster, its nodes have caches of their own."""
    if "RAY_ADDRESS" in os.environ:
        return
    asked = "evaluate" in stages or ("filter" in stages and recipe.filter.decontaminate)
    hub = any(_from_hub(recipe, stages))
    embedded = bool(stages & set(working_stages())) and is_world_missing(
        recipe
    )  # a report reads the run alone
    found.problems += unwritable(
        embedded, hub, datasets=asked and recipe.evaluate.harness is not None
    )


def _check_hub(recipe: Recipe, stages: set[str], found: Findings) -> None:
    """Whether what is not here can come from the hub."""
    wanted = list(dict.fromkeys(_from_hub(recipe, stages)))
    if not wanted:
        return
    listed = ", ".join(wanted)
    if _is_offline():
        found.problems.append(
            f"HF_HUB_OFFLINE is set, and these are not on this machine: {listed}"
        )
    elif error := _unreachable():
        elsewhere = "RAY_ADDRESS" in os.environ  # other machines may reach it
        lines = found.unchecked if elsewhere else found.problems
        lines.append(
            f"the Hugging Face hub does not answer ({error}), and these are not here: {listed}"
        )


def _from_hub(recipe: Recipe, stages: set[str]) -> Iterator[str]:
    """Models that are not on this machine, and data sets, which are streamed each time."""
    models = [
        part.model
        for part in recipe.teachers
        if "generate" in stages and not part.base_url
    ]
    models += [
        part.model
        for part in recipe.judges
        if "filter" in stages and recipe.filter.judge and not part.base_url
    ]
    models += [recipe.base.model] if stages & {*training_stages(), "evaluate"} else []
    here = (
        model for model in models if not model.startswith(("tiny-", "/", ".", "~"))
    )  # paths may be workers' own
    yield from (model for model in here if not _is_here(model))
    for _, parts, _ in _sources(recipe, stages):
        yield from (part.source for part in parts if part.source.startswith("hub:"))


def _is_here(model: str) -> bool:
    """Whether a model's files are on this machine: a folder, or in the hub's cache."""
    cached = hub_cache() / f"models--{model.replace('/', '--')}/snapshots"
    return Path(model).expanduser().is_dir() or any(cached.glob("*/config.json"))


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")


def _unreachable() -> str:
    """Why the hub does not answer; empty where it does, whatever it says."""
    address = os.environ.get("HF_ENDPOINT") or _HUB
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, method="HEAD"), timeout=_REACH_SECONDS
        ):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return f"{address}: {error}"
