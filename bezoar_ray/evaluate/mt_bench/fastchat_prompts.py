"""FastChat's judge prompts, read from its judge_prompts.jsonl.

They are figures 5 to 10 of arXiv 2306.05685. Published MT-Bench scores were given with
these prompts. FastChat owns the file, so it is not part of this package.
"""

import hashlib
import string
from functools import partial
from pathlib import Path

import orjson

from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate.mt_bench.judge_prompts import JudgePrompts, Texts, kind
from bezoar_ray.llm.chat import Messages
from bezoar_ray.sources.mt_bench_files import read_rows

TURNS = 2
"""FastChat's prompts have placeholders for this many turns."""
_FIELD = "evaluate.mt_bench.prompts"
_ANSWERS = {"single": ("answer",), "pair": ("answer_a", "answer_b")}
# Digest of the eight prompts, which FastChat has not changed since July 2023.
_PUBLISHED = "098b36bdcaef387d"

Prompts = dict[str, tuple[str, str]]
"""The system prompt and the template of the user message, by FastChat's name."""


def load_prompts(path: Path) -> JudgePrompts:
    """Load the eight prompts of MT-Bench.

    They are called FastChat's only if they are equal to the published ones.

    Raises:
        RecipeError: the file cannot be read, a prompt is missing, or a prompt has other
            placeholders than those that are filled.
    """
    in_file: Prompts = {}
    for where, row in read_rows(path, _FIELD):
        name = _text(where, row, "name")
        system = _text(where, row, "system_prompt")
        template = _text(where, row, "prompt_template")
        in_file[name] = (system, template)
    prompts = {}
    for way in _ANSWERS:
        for with_reference in (False, True):
            for turn in range(1, TURNS + 1):
                name = kind(way, with_reference, turn)
                if name not in in_file:
                    raise RecipeError(
                        f"{_FIELD}: {str(path)!r} has no prompt {name!r}. Use FastChat's complete file"
                    )
                expected = _placeholders(way, with_reference, turn)
                _check_placeholders(path, name, in_file[name][1], expected)
                prompts[name] = in_file[name]
    digest = hashlib.sha256(orjson.dumps(prompts)).hexdigest()
    whose = "FastChat's" if digest.startswith(_PUBLISHED) else f"those of {path.name}"
    return JudgePrompts(partial(_grade, prompts), partial(_compare, prompts), whose)


def _grade(
    prompts: Prompts, questions: Texts, answers: Texts, references: Texts | None = None
) -> Messages:
    return _messages(prompts, "single", questions, [answers], references)


def _compare(
    prompts: Prompts,
    questions: Texts,
    first: Texts,
    second: Texts,
    references: Texts | None = None,
) -> Messages:
    return _messages(prompts, "pair", questions, [first, second], references)


def _messages(
    prompts: Prompts,
    way: str,
    questions: Texts,
    answers: list[Texts],
    references: Texts | None,
) -> Messages:
    """Fill in the prompt for the last of these turns."""
    turns = len(questions)
    texts = {"question": questions}
    for name, of_model in zip(_ANSWERS[way], answers, strict=True):
        texts[name] = of_model
    values = {}
    for name, text_by_turn in texts.items():
        for number in range(1, turns + 1):
            values[_placeholder(name, number, turns)] = text_by_turn[number - 1]
    for number, reference in enumerate(references or (), 1):
        values[f"ref_answer_{number}"] = reference
    system, template = prompts[kind(way, references is not None, turns)]
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": template.format(**values)},
    ]


def _placeholders(way: str, with_reference: bool, turns: int) -> set[str]:
    """Return the placeholders that a template must have."""
    names = set()
    for number in range(1, turns + 1):
        for name in ("question", *_ANSWERS[way]):
            names.add(_placeholder(name, number, turns))
        if with_reference:
            names.add(f"ref_answer_{number}")
    return names


def _placeholder(name: str, number: int, turns: int) -> str:
    """Return a placeholder's name; prompts for one turn do not number it."""
    return name if turns == 1 else f"{name}_{number}"


def _text(where: str, row: object, field: str) -> str:
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise RecipeError(
            f"{where}: not a FastChat judge prompt: {field!r} must be a string, not {text!r:.60}"
        )
    return text


def _check_placeholders(
    path: Path, name: str, template: str, expected: set[str]
) -> None:
    present = set()
    try:
        for _, placeholder, _, _ in string.Formatter().parse(template):
            if placeholder is not None:
                present.add(placeholder)
    except ValueError as error:
        raise RecipeError(
            f"{_FIELD}: {str(path)!r}, prompt {name!r}: {error}"
        ) from error
    if present != expected:
        raise RecipeError(
            f"{_FIELD}: {str(path)!r}, prompt {name!r}: its placeholders are {_in_braces(present)}. "
            f"They must be {_in_braces(expected)}"
        )


def _in_braces(names: set[str]) -> str:
    if not names:
        return "none"
    return ", ".join(f"{{{name}}}" for name in sorted(names))
