"""Write the pages of docs/reference/ that follow from the code: `python docs/generate_reference.py`.

tests/test_docs_site.py fails where a page differs from what this script would write.
"""

import argparse
import inspect
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
_NAMES = {
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
    "id": "16 hex digits, made from the recipe's seed, the scheme, the seeds and the position of the call. The text of "
    "the row does not enter.",
    "scheme": "`lamini`, `evol_instruct`, `orca`, or the name of a custom scheme.",
    "operation": "How the row was made: LaMini's generator, Evol-Instruct's operation, Orca's system message, or the "
    "name that a custom scheme gives.",
    "round": "Evol-Instruct's epoch, from 1. 0 for other schemes.",
    "system": "System message of the call that wrote the response.",
    "history": "Earlier turns of a conversation, in custom rows.",
    "instruction": "The instruction.",
    "input": "Text that the instruction is about.",
    "response": "The teacher's answer.",
    "finish_reason": "Why the answer ended: `stop`, or `length` where it was cut off.",
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
    "verdicts": "One verdict for each judge that was asked.",
    "task_source": "FLAN sub-mixture, in rows of Orca.",
    "task_name": "FLAN task, in rows of Orca.",
    "judge": "Model that rated the row.",
    "rating": "Rating from 1 to 5. Empty where none could be read.",
    "source": "Where the pair comes from.",
    "license": "Licence of that source.",
    "prompt": "The conversation up to the last user turn.",
    "chosen": "The preferred answer.",
    "rejected": "The other answer.",
}
_OF_VERDICT = {
    "status": "`accepted`, `rejected` or `failed`.",
    "reason": "The judge's reason, or the error of the call.",
}
_OF_PAIR = {"id": "Hash of the pair's source and position."}

REASONS = {
    "missing": (
        "generate",
        "LaMini: the teacher's reply holds fewer instructions than were asked for. The row fails.",
    ),
    "call": (
        "generate",
        "A model call failed for good. The text after the colon is the error. The row fails.",
    ),
    "adds_nothing": (
        "generate",
        "Evol-Instruct: the evolved instruction asks nothing new.",
    ),
    "sorry": ("generate", "Evol-Instruct: the answer is short and says sorry."),
    "stop_words": (
        "generate",
        "Evol-Instruct: the answer holds punctuation and stop words only.",
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
        "A deciding judge gave no rating, twice. After the colon stands the cause. The row fails.",
    ),
    "contaminated": (
        "filter",
        "The row shares text with a benchmark that the recipe evaluates on. The text after the colon names the "
        "benchmark. `filter.decontaminate: false` switches the check off.",
    ),
    "near_duplicate": (
        "filter",
        "The row says nearly the same as another row or a seed (MinHash of word triples, 0.85).",
    ),
    "same_meaning": (
        "filter",
        "The instruction asks the same as another one in other words. Needs `filter.meaning`.",
    ),
    "not_best": (
        "filter",
        "Another answer to the same instruction is rated higher. Needs `generate.candidates`.",
    ),
    "capped": ("filter", "The scheme has as many rows as `filter.cap` allows."),
}
"""Reasons that come from elsewhere than a gate: the stage that gives them, and their meaning."""


def pages() -> dict[str, str]:
    """Each generated page by its file name."""
    return {
        "recipe.md": recipe_page(),
        "commands.md": commands_page(),
        "exit-codes.md": exit_codes_page(),
        "rows.md": rows_page(),
        "rejection-reasons.md": reasons_page(),
        "metrics.md": metrics_page(),
    }


def recipe_page() -> str:
    """Every section of a recipe, with a table of its fields."""
    found: dict[type[BaseModel], list[str]] = {}
    counted: set[type[BaseModel]] = (
        set()
    )  # sections of which a field can enter a fingerprint
    for path, model, counts in sections(Recipe):
        found.setdefault(model, []).append(path)
        counted |= {model} if counts else set()
    anchors = {model: anchor(_title(paths)) for model, paths in found.items()}
    parts = [
        "# Recipe fields",
        "A recipe is a YAML file with the sections below. Unknown keys are refused.",
        "The column *fingerprint* says whether a change of the field redoes stages. **yes**: the stages that read the "
        "field run again, and those after them. **no**: the field is runtime-only, and the run resumes where it "
        "stopped. **content**: as yes; where the value names files, their content counts in place of their names. "
        "**by field**: see the section. "
        "[Fingerprints and resume](../explanation/fingerprints-and-resume.md) explains the idea.",
        "## Which stage reads which section",
        table(
            ["stage", "reads"],
            [
                [f"`{stage}`", ", ".join(f"`{name}`" for name in names)]
                for stage, names in (
                    (stage.name, stage.reads) for stage in STAGES.values()
                )
            ],
        ),
        "The fingerprint of a stage also covers all that the stages before it read. `template` is the text of "
        "`chat_template`. `mt_bench_judges` are the judges of `evaluate.mt_bench`, or the first of `judges`.",
    ]
    for model, paths in found.items():
        parts += [
            f"## {_title(paths)}",
            inspect.cleandoc(model.__doc__ or ""),
            _fields(model, anchors, model in counted),
        ]
    return page(parts)


def sections(
    model: type[BaseModel], path: str = "", counts: bool = True
) -> Iterator[tuple[str, type[BaseModel], bool]]:
    """Each section with its path in a recipe, and whether it can enter a fingerprint.

    A path has `judges[]` for an entry of a list, and `own.NAME` for an entry of a mapping.
    """
    yield path, model, counts
    for name, field in model.model_fields.items():
        for steps, inner in _models_in(field.annotation):
            yield from sections(
                inner,
                f"{path}.{name}{steps}".lstrip("."),
                counts and RUNTIME_ONLY not in field.metadata,
            )


def _models_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
        return
    step = {tuple: "[]", list: "[]", dict: ".NAME"}.get(get_origin(annotation), "")
    for inner in get_args(annotation):
        yield from ((step + steps, model) for steps, model in _models_in(inner))


def _title(paths: list[str]) -> str:
    return " · ".join(dict.fromkeys(path or "The recipe" for path in paths))


def _fields(
    model: type[BaseModel], anchors: dict[type[BaseModel], str], counts: bool
) -> str:
    rows = []
    for name, field in model.model_fields.items():
        inner = next((found for _, found in _models_in(field.annotation)), None)
        text = describe(model, name) or inspect.cleandoc(inner.__doc__ or "")
        rows.append(
            [
                f"`{name}`",
                _section_link(field, anchors[inner])
                if inner
                else type_name(field.annotation, field.metadata),
                default(field),
                fingerprint(name, field.metadata, bool(inner)) if counts else "no",
                " ".join(text.split()),
            ]
        )
    return table(["field", "type", "default", "fingerprint", "meaning"], rows)


def _section_link(field: Any, name: str) -> str:
    kind = {tuple: "list of sections", dict: "mapping of names to sections"}.get(
        get_origin(field.annotation), "section"
    )
    return f"[{kind}](#{name})"


def describe(model: type[BaseModel], name: str) -> str:
    """The docstring of a field; where a section gives an inherited field another default, that of its parent."""
    models = [
        base
        for base in model.__mro__
        if issubclass(base, BaseModel) and name in base.model_fields
    ]
    return next(
        (text for base in models if (text := base.model_fields[name].description)), ""
    )


def fingerprint(name: str, metadata: list[Any], is_section: bool) -> str:
    """Whether a field enters the fingerprint of the stages that read it."""
    if name == "engine":
        return "arguments that change the answers"
    if RUNTIME_ONLY in metadata:
        return "no"
    if is_section:
        return "by field"
    return "content" if FILES in metadata else "yes"


def default(field: Any) -> str:
    """A field's default, as YAML on one line."""
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "as below"
    value = field.default
    if isinstance(value, dict) and any(
        isinstance(inner, BaseModel) for inner in value.values()
    ):
        value = {
            name: inner.model_dump(exclude_defaults=True)
            for name, inner in value.items()
        }
    plain = yaml.safe_dump(
        _plain(value), default_flow_style=True, width=10_000, sort_keys=False
    )
    return (
        f"`{plain.removesuffix('...' + chr(10)).strip()}`"
        if value is not None
        else "empty"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return (
        {key: _plain(item) for key, item in value.items()}
        if isinstance(value, dict)
        else value
    )


def type_name(annotation: Any, metadata: Any = ()) -> str:
    """A type in words, with its bounds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(inner[0], [*inner[1:], *metadata])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(
            type_name(one, metadata if one is not type(None) else ()) for one in inner
        )
    if origin is tuple:
        return " and ".join(
            dict.fromkeys(
                f"list of {type_name(one)}" for one in inner if one is not ...
            )
        )
    if origin is dict:
        return f"mapping of {type_name(inner[0])} to {type_name(inner[1])}"
    return " ".join(
        [_NAMES.get(annotation, str(annotation)), *_bounds(annotation, metadata)]
    )


def _bounds(annotation: Any, metadata: Any) -> Iterator[str]:
    if annotation not in (int, float):
        return
    for mark in metadata:
        for each in getattr(
            mark, "metadata", [mark]
        ):  # a pydantic Field holds its bounds
            if type(each) in _BOUNDS:
                name, text = _BOUNDS[type(each)]
                yield f"{text} {getattr(each, name)}"


def commands_page() -> str:
    """Every command with its arguments."""
    parser = cli._parser()
    parts = [
        "# Commands",
        "`bezoar COMMAND --help` prints the same. Exit codes: [exit codes](exit-codes.md).",
    ]
    for name, command in subcommands(parser).items():
        parts += [f"## bezoar {name}", f"{command.description}", _arguments(command)]
        for group in command._mutually_exclusive_groups:
            names = [f"`{action.option_strings[0]}`" for action in group._group_actions]
            parts.append(f"Give at most one of {', '.join(names)}.")
    return page(parts)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands by name."""
    (commands,) = (
        action
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(commands.choices)


def _arguments(command: argparse.ArgumentParser) -> str:
    rows = []
    for action in command._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        value = action.metavar or (
            " or ".join(action.choices) if action.choices else ""
        )
        text = (action.help or "") % {"default": action.default}
        if not action.option_strings:
            many = {"*": " (any number)", "+": " (one or more)"}.get(
                str(action.nargs), ""
            )
            rows.append([f"`{value}`{many}", text])
        else:
            shown = f"{action.option_strings[0]} {value}".strip()
            rows.append(
                [f"`{shown}`" + (" (required)" if action.required else ""), text]
            )
    return table(["argument", "meaning"], rows)


def exit_codes_page() -> str:
    """The meaning of the command's exit codes."""
    kinds = {
        kind.exit_code: kind
        for kind in (errors.RecipeError, errors.BezoarError, errors.BudgetReached)
    }
    rows = [["0", "Done."]]
    for code, kind in sorted(kinds.items()):
        text = " ".join(inspect.getdoc(kind).split())
        rows.append([str(code), text.partition(" Exit code")[0]])
    rows.append(["130", "Interrupted by Ctrl-C or SIGTERM."])
    return page(
        [
            "# Exit codes",
            table(["code", "meaning"], rows),
            "A run directory that another command uses also ends a command with 2. After 3, 4 and 130 the same command "
            "resumes the run; after 4, raise the budget first.",
        ]
    )


def rows_page() -> str:
    """The columns of each kind of Parquet file."""
    parts = [
        "# Rows",
        "Rows lie in Parquet files. A file counts only if the manifest of its stage lists it.",
        "## Samples",
        "`data/<scheme>/<status>/*.parquet`",
        _columns(Sample, sample_schema(), {}),
        "Each of `verdicts` holds:",
        table(
            ["field", "meaning"],
            [
                [f"`{field.name}`", (COLUMNS | _OF_VERDICT)[field.name]]
                for field in fields(Verdict)
            ],
        ),
        "## Pairs",
        "`data/hh_rlhf/{sft,pairs,heldout}/*.parquet`",
        _columns(Pair, pair_schema(), _OF_PAIR),
    ]
    return page(parts)


def _columns(kind: Any, schema: Any, own: dict[str, str]) -> str:
    types_ = {column.name: str(column.type) for column in schema}
    rows = [
        [f"`{each.name}`", f"`{types_[each.name]}`", (COLUMNS | own)[each.name]]
        for each in fields(kind)
    ]
    return table(["column", "Arrow type", "meaning"], rows)


def reasons_page() -> str:
    """Why a row is rejected or failed."""
    gates = [[f"`{name}`", _first_line(gate)] for name, gate in GATES.items()]
    asked = [[f"`{name}`", _first_line(gate)] for name, gate in EXTRA.items()]
    others = [[f"`{name}`", stage, text] for name, (stage, text) in REASONS.items()]
    return page(
        [
            "# Why a row is rejected",
            "The column `reason` of a rejected or failed row begins with one of these words. summary.json counts them "
            "under `data.<scheme>.reasons`.",
            "## Gates",
            "Gates cost nothing and run before a judge is asked. The first gate that objects is the reason.",
            table(["reason", "the gate objects where"], gates),
            "These gates run where `filter.gates` names them:",
            table(["reason", "the gate objects where"], asked),
            "Evol-Instruct also gives `empty`, `truncated` and `scaffolding` for an evolved instruction.",
            "## Other reasons",
            table(["reason", "stage", "meaning"], others),
        ]
    )


def _first_line(function: Any) -> str:
    return " ".join(inspect.getdoc(function).split("\n\n")[0].split())


def metrics_page() -> str:
    """The metrics for Prometheus."""
    rows = [
        [
            f"`ray_{name}{'_total' if kind == 'Counter' else ''}`",
            kind.lower(),
            text,
            ", ".join(f"`{t}`" for t in tags),
        ]
        for name, (kind, text, tags) in METRICS.items()
    ]
    return page(
        [
            "# Metrics",
            "Every node exports these metrics to Prometheus, beside those of Ray and vLLM. `cluster/grafana.json` is a "
            "dashboard of them. Without Ray no metrics are exported.",
            table(["metric", "kind", "meaning", "labels"], rows),
        ]
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )


def page(parts: list[str]) -> str:
    """A page of paragraphs."""
    return "\n\n".join([_NOTE, *parts]) + "\n"


def anchor(title: str) -> str:
    """The name under which a heading can be linked, as GitHub and MyST make it."""
    kept = "".join(char for char in title.lower() if char.isalnum() or char in " -_")
    return kept.replace(" ", "-")


def main() -> None:
    """Write the pages that differ."""
    for name, text in pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path)


if __name__ == "__main__":
    main()
