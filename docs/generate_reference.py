"""Write the pages of docs/reference/ from the code: `python docs/generate_reference.py`.

tests/test_docs_site.py fails if a page differs from the output of this script.
"""

import argparse
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from bezoar_ray import cli, errors
from bezoar_ray.data.schema import Pair, Sample, Verdict, pair_schema, sample_schema
from bezoar_ray.filter.gates import EXTRA, GATES
from bezoar_ray.recipe import Recipe
from bezoar_ray.recipe.section import FILES, RUNTIME_ONLY
from bezoar_ray.runtime.metrics import METRICS
from bezoar_ray.stages import STAGES

FOLDER = Path(__file__).parent / "reference"
_NOTE = "<!-- Written by docs/generate_reference.py from the code. Change the code, then run `make reference`. -->"
_TYPE_NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "`true` or `false`",
    type(None): "empty",
    Any: "any value",
}
_BOUNDS = {
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Lt: ("lt", "below"),
    annotated_types.Le: ("le", "at most"),
}

COLUMNS = {
    "id": "16 hex digits: a hash of the recipe's seed, the scheme, the seeds and the position of the call. The text of "
    "the row does not enter.",
    "scheme": "`lamini`, `evol_instruct`, `orca`, or the name of a custom scheme.",
    "operation": "How the row was made: LaMini's generator, Evol-Instruct's operation, Orca's system message, or the "
    "name that a custom scheme sets.",
    "round": "Evol-Instruct's epoch, from 1. 0 for other schemes.",
    "system": "System message of the call that wrote the response.",
    "history": "Earlier turns of a conversation, in custom rows.",
    "instruction": "The instruction.",
    "input": "Text that the instruction is about.",
    "response": "The teacher's answer.",
    "finish_reason": "Why the answer ended: `stop`, or `length` if it was cut off.",
    "tokens_in": "Prompt tokens of the call that wrote the response.",
    "tokens_out": "Completion tokens of that call.",
    "seed_ids": "Ids of the seeds that the row was made from.",
    "seed_sources": "Source of each of these seeds.",
    "seed_licenses": "Licence of each of these seeds.",
    "teacher": "Model that wrote the response.",
    "teacher_license": "Licence of that model, as the recipe names it.",
    "prompt_hash": "Hash of the messages that asked for the response.",
    "status": "`generated`, `accepted`, `rejected` or `failed`.",
    "reason": "Why the row was rejected or failed: see [rejection reasons](rejection-reasons.md).",
    "verdicts": "One verdict for each judge that was called.",
    "task_source": "FLAN sub-mixture, in Orca rows.",
    "task_name": "FLAN task, in Orca rows.",
    "person": "What a person decided: `accepted`, `rejected`, or `edited` if the texts are the person's. Empty if "
    "gates and judges decided. Verdicts stay those of the generated text.",
    "judge": "Model that rated the row.",
    "rating": "Rating from 1 to 5. Empty if the reply has none.",
    "source": "Source of the pair.",
    "license": "Licence of that source.",
    "prompt": "The conversation up to the last user turn.",
    "chosen": "The preferred answer.",
    "rejected": "The other answer.",
}
_VERDICT_FIELDS = {
    "status": "`accepted`, `rejected` or `failed`.",
    "reason": "The judge's reason, or the error of the call.",
}
_PAIR_COLUMNS = {"id": "Hash of the pair's source and position."}

REASONS = {
    "missing": (
        "generate",
        "LaMini: the teacher's reply has fewer instructions than requested. The row fails.",
    ),
    "call": (
        "generate",
        "A model call was refused, or all retries failed. The text after the colon is the error. The row fails.",
    ),
    "adds_nothing": (
        "generate",
        "Evol-Instruct: the evolved instruction asks nothing new.",
    ),
    "sorry": ("generate", "Evol-Instruct: the answer is short and contains “sorry”."),
    "stop_words": (
        "generate",
        "Evol-Instruct: the answer has only punctuation and stop words.",
    ),
    "duplicate": (
        "generate, filter",
        "The row asks the same as another row of any scheme, or as a seed.",
    ),
    "judge": (
        "filter",
        "The deciding judges rate the row below `filter.accept_rating`.",
    ),
    "unrated": (
        "filter",
        "A deciding judge gave no rating, twice. The text after the colon is the cause. The row fails.",
    ),
    "person": (
        "filter",
        "A person rejected the row in `bezoar review`. The text after the colon is the person's reason. Needs "
        "`filter.decisions`.",
    ),
    "contaminated": (
        "filter",
        "The row shares text with a benchmark that the recipe evaluates on. The text after the colon names the "
        "benchmark. `filter.decontaminate: false` turns the check off.",
    ),
    "near_duplicate": (
        "filter",
        "The row has nearly the same text as another row or a seed (MinHash of word triples, 0.85).",
    ),
    "same_meaning": (
        "filter",
        "The instruction has the same meaning as another one in other words. Needs `filter.meaning`.",
    ),
    "not_best": (
        "filter",
        "Another answer to the same instruction has a higher rating. Needs `generate.candidates`.",
    ),
    "capped": ("filter", "The scheme already has as many rows as `filter.cap` allows."),
}
"""Reasons that do not come from a gate: their stage and their meaning."""


def pages() -> dict[str, str]:
    """Return each generated page by its file name."""
    return {
        "recipe.md": recipe_page(),
        "commands.md": commands_page(),
        "exit-codes.md": exit_codes_page(),
        "rows.md": rows_page(),
        "rejection-reasons.md": reasons_page(),
        "metrics.md": metrics_page(),
    }


def recipe_page() -> str:
    """Return a page with a table of fields for every section of a recipe."""
    paths_of: dict[type[BaseModel], list[str]] = {}
    # Sections that have a field that can enter a fingerprint.
    counted: set[type[BaseModel]] = set()
    for path, model, counts in sections(Recipe):
        paths_of.setdefault(model, []).append(path)
        if counts:
            counted.add(model)
    anchors = {model: anchor(_title(paths)) for model, paths in paths_of.items()}
    stage_rows = []
    for stage in STAGES.values():
        reads = ", ".join(f"`{name}`" for name in stage.reads)
        stage_rows.append([f"`{stage.name}`", reads])
    parts = [
        "# Recipe fields",
        "A recipe is a YAML file with the sections below. Unknown keys are refused.",
        "The column *fingerprint* tells whether a change of the field redoes stages. **yes**: the stages that read the "
        "field run again, and all later stages. **no**: the field is runtime-only, and the run resumes where it "
        "stopped. **content**: as yes; if the value names files, their content counts instead of their names. "
        "**by field**: see the section. "
        "[Fingerprints and resume](../explanation/fingerprints-and-resume.md) explains the idea.",
        "## Which stage reads which section",
        table(["stage", "reads"], stage_rows),
        "The fingerprint of a stage also covers all that the stages before it read. `template` is the text of "
        "`chat_template`. `mt_bench_judges` are the judges of `evaluate.mt_bench`, or the first of `judges`.",
    ]
    for model, paths in paths_of.items():
        parts += [
            f"## {_title(paths)}",
            inspect.cleandoc(model.__doc__ or ""),
            _fields(model, anchors, model in counted),
        ]
    return page(parts)


def sections(
    model: type[BaseModel], path: str = "", counts: bool = True
) -> Iterator[tuple[str, type[BaseModel], bool]]:
    """Yield each section with its path, and whether it can enter a fingerprint.

    A path has `judges[]` for an entry of a list, and `own.NAME` for an entry of a
    mapping.
    """
    yield path, model, counts
    for name, field in model.model_fields.items():
        inner_counts = counts and RUNTIME_ONLY not in field.metadata
        for steps, inner in _models_in(field.annotation):
            inner_path = f"{path}.{name}{steps}".lstrip(".")
            yield from sections(inner, inner_path, inner_counts)


def _models_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections in a type, with the steps of the path that lead to them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
        return
    step = {tuple: "[]", list: "[]", dict: ".NAME"}.get(get_origin(annotation), "")
    for inner in get_args(annotation):
        for steps, model in _models_in(inner):
            yield step + steps, model


def _title(paths: list[str]) -> str:
    return " · ".join(dict.fromkeys(path or "The recipe" for path in paths))


def _fields(
    model: type[BaseModel], anchors: dict[type[BaseModel], str], counts: bool
) -> str:
    rows = []
    for name, field in model.model_fields.items():
        inner = next((found for _, found in _models_in(field.annotation)), None)
        text = describe(model, name)
        if inner:
            text = text or inspect.cleandoc(inner.__doc__ or "")
            kind = _section_link(field, anchors[inner])
        else:
            kind = type_name(field.annotation, field.metadata)
        enters = fingerprint(name, field.metadata, bool(inner)) if counts else "no"
        one_line = " ".join(text.split())
        rows.append([f"`{name}`", kind, default(field), enters, one_line])
    return table(["field", "type", "default", "fingerprint", "meaning"], rows)


def _section_link(field: Any, name: str) -> str:
    kind = {tuple: "list of sections", dict: "mapping of names to sections"}.get(
        get_origin(field.annotation), "section"
    )
    return f"[{kind}](#{name})"


def describe(model: type[BaseModel], name: str) -> str:
    """Return the docstring of a field.

    A section that only changes the default of an inherited field has none, so the
    docstring of its parent is used.
    """
    for base in model.__mro__:
        if not issubclass(base, BaseModel) or name not in base.model_fields:
            continue
        text = base.model_fields[name].description
        if text:
            return text
    return ""


def fingerprint(name: str, metadata: list[Any], is_section: bool) -> str:
    """Tell whether a field enters the fingerprint of the stages that read it."""
    if name == "engine":
        return "arguments that change the answers"
    if RUNTIME_ONLY in metadata:
        return "no"
    if is_section:
        return "by field"
    return "content" if FILES in metadata else "yes"


def default(field: Any) -> str:
    """Return the default of a field, as YAML on one line."""
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "empty"
    if isinstance(value, BaseModel):
        return "as below"
    text = yaml.safe_dump(
        _plain(value), default_flow_style=True, width=10_000, sort_keys=False
    )
    # YAML ends a lone scalar with a line of three dots.
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _plain(value: Any) -> Any:
    """Convert a default to lists and dictionaries, which YAML can write."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_defaults=True)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def type_name(annotation: Any, metadata: Any = ()) -> str:
    """Return a type in words, with its bounds."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        names = []
        for argument in arguments:
            bounds = () if argument is type(None) else metadata
            names.append(type_name(argument, bounds))
        return " or ".join(names)
    if origin is tuple:
        items = [type_name(argument) for argument in arguments if argument is not ...]
        return " and ".join(dict.fromkeys(f"list of {item}" for item in items))
    if origin is dict:
        key, value = arguments
        return f"mapping of {type_name(key)} to {type_name(value)}"
    name = _TYPE_NAMES.get(annotation, str(annotation))
    return " ".join([name, *_bounds(annotation, metadata)])


def _bounds(annotation: Any, metadata: Any) -> Iterator[str]:
    if annotation not in (int, float):
        return
    for entry in metadata:
        # A pydantic Field holds its bounds in an attribute of the same name.
        for bound in getattr(entry, "metadata", [entry]):
            if type(bound) in _BOUNDS:
                name, text = _BOUNDS[type(bound)]
                yield f"{text} {getattr(bound, name)}"


def commands_page() -> str:
    """Return a page with every command, its examples and its arguments."""
    parser = cli._parser()
    parts = [
        "# Commands",
        "`bezoar COMMAND --help` prints the same. Exit codes: [exit codes](exit-codes.md).",
    ]
    for name, command in subcommands(parser).items():
        description = " ".join((command.description or "").split())
        parts += [f"## bezoar {name}", description, _examples(command)]
        parts.append(_arguments(command))
        for group in command._mutually_exclusive_groups:
            names = [f"`{action.option_strings[0]}`" for action in group._group_actions]
            parts.append(f"Give at most one of {', '.join(names)}.")
    return page(parts)


def _examples(command: argparse.ArgumentParser) -> str:
    examples = (command.epilog or "").removeprefix("examples:\n")
    return f"```sh\n{textwrap.dedent(examples)}\n```"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise ValueError("the parser has no commands")


def _arguments(command: argparse.ArgumentParser) -> str:
    rows = []
    for action in command._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        value = action.metavar or " or ".join(action.choices or [])
        if action.option_strings:
            name = f"`{action.option_strings[0]} {value}".strip() + "`"
            if action.required:
                name += " (required)"
        else:
            name = f"`{value}`"
            if action.nargs == "*":
                name += " (any number)"
            elif action.nargs == "+":
                name += " (one or more)"
        text = (action.help or "") % {"default": action.default}
        rows.append([name, text])
    return table(["argument", "meaning"], rows)


def exit_codes_page() -> str:
    """Return a page with the meaning of the command's exit codes."""
    kinds = (
        errors.RecipeError,
        errors.BezoarError,
        errors.BudgetReached,
        errors.ReviewNeeded,
    )
    rows = [["0", "Done."]]
    for kind in sorted(kinds, key=lambda kind: kind.exit_code):
        text = " ".join(inspect.getdoc(kind).split())
        meaning = text.partition(" Exit code")[0]
        rows.append([str(kind.exit_code), meaning])
    rows.append(["130", "Interrupted by Ctrl-C or SIGTERM."])
    parts = [
        "# Exit codes",
        table(["code", "meaning"], rows),
        "A command also ends with 2 if another command uses the run directory. After 3, 4, 5 and 130, the same "
        "command resumes the run. After 4, raise the budget first. After 5, review rows first: see "
        "[human review](../how-to/human-review.md#ask-for-a-review-before-training).",
    ]
    return page(parts)


def rows_page() -> str:
    """Return a page with the columns of each kind of Parquet file."""
    verdict_fields = COLUMNS | _VERDICT_FIELDS
    verdict_rows = [
        [f"`{field.name}`", verdict_fields[field.name]] for field in fields(Verdict)
    ]
    parts = [
        "# Rows",
        "Rows are in Parquet files. A file counts only if the manifest of its stage lists it.",
        "## Samples",
        "`data/<scheme>/<status>/*.parquet`",
        _columns(Sample, sample_schema(), COLUMNS),
        "Each of `verdicts` has these fields:",
        table(["field", "meaning"], verdict_rows),
        "## Pairs",
        "`data/hh_rlhf/{sft,pairs,heldout}/*.parquet`",
        _columns(Pair, pair_schema(), COLUMNS | _PAIR_COLUMNS),
    ]
    return page(parts)


def _columns(row_type: Any, schema: Any, meanings: dict[str, str]) -> str:
    arrow_types = {column.name: str(column.type) for column in schema}
    rows = []
    for field in fields(row_type):
        name = field.name
        rows.append([f"`{name}`", f"`{arrow_types[name]}`", meanings[name]])
    return table(["column", "Arrow type", "meaning"], rows)


def reasons_page() -> str:
    """Return a page with the reasons why a row is rejected or failed."""
    gates = [[f"`{name}`", _first_line(gate)] for name, gate in GATES.items()]
    extra = [[f"`{name}`", _first_line(gate)] for name, gate in EXTRA.items()]
    others = [[f"`{name}`", stage, text] for name, (stage, text) in REASONS.items()]
    gate_columns = ["reason", "the gate rejects a row if"]
    parts = [
        "# Why a row is rejected",
        "The column `reason` of a rejected or failed row begins with one of these words. summary.json counts them "
        "under `data.<scheme>.reasons`.",
        "## Gates",
        "Gates cost nothing, and run before the judges. The first gate that rejects a row is the reason.",
        table(gate_columns, gates),
        "These gates run if `filter.gates` names them:",
        table(gate_columns, extra),
        "Evol-Instruct also gives `empty`, `truncated` and `scaffolding` for an evolved instruction.",
        "## Other reasons",
        table(["reason", "stage", "meaning"], others),
    ]
    return page(parts)


def _first_line(function: Any) -> str:
    return " ".join(inspect.getdoc(function).split("\n\n")[0].split())


def metrics_page() -> str:
    """Return a page with the metrics for Prometheus."""
    rows = []
    for name, (kind, text, tags) in METRICS.items():
        suffix = "_total" if kind == "Counter" else ""
        labels = ", ".join(f"`{tag}`" for tag in tags)
        rows.append([f"`ray_{name}{suffix}`", kind.lower(), text, labels])
    parts = [
        "# Metrics",
        "Every node exports these metrics to Prometheus, beside those of Ray and vLLM. `cluster/grafana.json` is a "
        "dashboard of them. Without Ray, no metrics are exported.",
        table(["metric", "kind", "meaning", "labels"], rows),
    ]
    return page(parts)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = []
    for row in [head, ["---"] * len(head), *rows]:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(parts: list[str]) -> str:
    """Return a page of paragraphs."""
    return "\n\n".join([_NOTE, *parts]) + "\n"


def anchor(title: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    kept = "".join(char for char in title.lower() if char.isalnum() or char in " -_")
    return kept.replace(" ", "-")


def main() -> None:
    """Write the pages that have changed."""
    for name, text in pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path)


if __name__ == "__main__":
    main()
