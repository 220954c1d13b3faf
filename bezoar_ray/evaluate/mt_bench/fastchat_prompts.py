"""FastChat's own judge prompts (arXiv 2306.05685, figures 5 to 10), read from its judge_prompts.jsonl.

Published MT-Bench scores were given to these words. The file is FastChat's, and is not packaged here.
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
"""FastChat's prompts have places for so many turns."""
_FIELD = "evaluate.mt_bench.prompts"
_ANSWERS = {"single": ("answer",), "pair": ("answer_a", "answer_b")}
_PUBLISHED = "098b36bdcaef387d"  # digest of the eight prompts, as FastChat has had them since July 2023

Prompts = dict[str, tuple[str, str]]
"""System prompt and template of the user's message, by FastChat's name."""


def load_prompts(path: Path) -> JudgePrompts:
    """The eight prompts that MT-Bench needs. They count as FastChat's where no word differs.

    Raises:
        RecipeError: the file cannot be read, lacks a prompt, or has one whose places are not those that are filled.
    """
    found: Prompts = {}
    for where, row in read_rows(path, _FIELD):
        name, system, template = (
            _text(where, row, field)
            for field in ("name", "system_prompt", "prompt_template")
        )
        found[name] = (system, template)
    prompts = {}
    for way in _ANSWERS:
        for guided in (False, True):
            for turn in range(1, TURNS + 1):
                name = kind(way, guided, turn)
                if name not in found:
                    raise RecipeError(
                        f"{_FIELD}: {str(path)!r} has no prompt {name!r}. Take FastChat's whole file"
                    )
                _check_places(path, name, found[name][1], _places(way, guided, turn))
                prompts[name] = found[name]
    digest = hashlib.sha256(orjson.dumps(prompts)).hexdigest()
    whose = "FastChat's" if digest.startswith(_PUBLISHED) else f"those of {path.name}"
    return JudgePrompts(partial(_grade, prompts), partial(_compare, prompts), whose)


def _grade(
    prompts: Prompts, questions: Texts, answers: Texts, references: Texts | None = None
) -> Messages:
    return _asked(prompts, "single", questions, [answers], references)


def _compare(
    prompts: Prompts,
    questions: Texts,
    first: Texts,
    second: Texts,
    references: Texts | None = None,
) -> Messages:
    return _asked(prompts, "pair", questions, [first, second], references)


def _asked(
    prompts: Prompts,
    way: str,
    questions: Texts,
    answers: list[Texts],
    references: Texts | None,
) -> Messages:
    turn = len(questions)
    texts = {"question": questions} | dict(zip(_ANSWERS[way], answers, strict=True))
    filled = {
        _place(name, n, turn): said[n - 1]
        for name, said in texts.items()
        for n in range(1, turn + 1)
    }
    for n, reference in enumerate(references or (), 1):
        filled[f"ref_answer_{n}"] = reference
    system, template = prompts[kind(way, references is not None, turn)]
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": template.format(**filled)},
    ]


def _places(way: str, guided: bool, turn: int) -> set[str]:
    """The places that a template has."""
    numbers = range(1, turn + 1)
    places = {
        _place(name, n, turn) for name in ("question", *_ANSWERS[way]) for n in numbers
    }
    return places | {f"ref_answer_{n}" for n in numbers if guided}


def _place(name: str, number: int, turns: int) -> str:
    """Prompts of one turn do without a number."""
    return name if turns == 1 else f"{name}_{number}"


def _text(where: str, row: object, field: str) -> str:
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise RecipeError(
            f"{where}: not a judge prompt of FastChat's: {field!r} has to be a text, not {text!r:.60}"
        )
    return text


def _check_places(path: Path, name: str, template: str, places: set[str]) -> None:
    try:
        found = {
            place
            for _, place, _, _ in string.Formatter().parse(template)
            if place is not None
        }
    except ValueError as error:
        raise RecipeError(
            f"{_FIELD}: {str(path)!r}, prompt {name!r}: {error}"
        ) from error
    if found != places:
        wanted, has = (
            ", ".join(f"{{{place}}}" for place in sorted(these))
            for these in (places, found)
        )
        raise RecipeError(
            f"{_FIELD}: {str(path)!r}, prompt {name!r}: its places are {has or 'none'}, not {wanted}"
        )
