"""May the result of a recipe be used commercially? Yes, with obligations, no, or unknown, each with its causes.

This is a reading aid, not legal advice: the table holds the licences that the recipe's usual parts come under.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from bezoar_ray.recipe import ModelSection, Recipe, SourceSection

if TYPE_CHECKING:
    from boolean import Expression

YES, OBLIGATIONS, UNKNOWN, NO = "yes", "with obligations", "unknown", "no"
_WORST_LAST = (YES, OBLIGATIONS, UNKNOWN, NO)


@dataclass(frozen=True)
class Terms:
    """What a licence means for selling what was made under it."""

    verdict: str
    note: str


@dataclass(frozen=True)
class Cause:
    """One part of the recipe, and what its licence means for the result."""

    part: str
    license: str
    terms: Terms

    def __str__(self) -> str:
        return f"{self.part} ({self.license}): {self.terms.note}"


_PERMISSIVE = Terms(
    YES, "permissive; keep the copyright notice with copies of the part itself"
)
_ATTRIBUTION = Terms(OBLIGATIONS, "name the authors, the licence and your changes")
_SHARE_ALIKE = Terms(
    OBLIGATIONS,
    "name the authors, and publish data adapted from it under the same licence (share-alike)",
)
_COPYLEFT = Terms(
    OBLIGATIONS, "copies and derived works must be passed on under the same licence"
)
_NON_COMMERCIAL = Terms(NO, "for non-commercial use only")
_NO_DERIVATIVES = Terms(NO, "nothing adapted from it may be passed on")
_LLAMA = Terms(
    OBLIGATIONS,
    "carry the Llama name and licence, keep to its acceptable use, and ask Meta above 700 million users",
)
_OLD_LLAMA = Terms(
    OBLIGATIONS,
    "keep to its acceptable use; its output may not improve language models of other families",
)
_GEMMA = Terms(
    OBLIGATIONS,
    "pass on Gemma's terms and prohibited uses with every model made from it or its output",
)
_PROVIDER = Terms(
    OBLIGATIONS,
    "its output may not be used to develop competing models. Here it only rates: none of its words are trained on; "
    "whether a filter is such a use is for your own reading of the terms",
)
_ROUTER = Terms(
    OBLIGATIONS,
    "it passes on the terms of each model's author and host; a teacher has to be one that it lists as distillable",
)  # https://openrouter.ai/docs/guides/guides/distillation
_TEACHES_ANYWAY = Terms(
    NO, "its output is the training data, and may not be used to make other models"
)
_UNKNOWN = Terms(
    UNKNOWN, "no licence that the table knows; read it, and name it in the recipe"
)

# What each name means, by the whole of it; anything left over ("Apache-2.0-with-Commons-Clause") is unknown.
_VERSION = r"(-?v?\d+(\.\d+)*)?"
_TABLE = (
    (
        r"(openai|anthropic|google|mistral-?ai|cohere|xai)-(api|terms|tos)(-of-(use|service))?",
        _PROVIDER,
    ),
    (r"openrouter-(api|terms|tos)(-of-(use|service))?", _ROUTER),
    (
        rf"cc-?by-(nc-?(sa|nd)?|sa-nc){_VERSION}(-\w+)?|research-only|mistral-research(-license)?|mrl{_VERSION}",
        _NON_COMMERCIAL,
    ),
    (
        rf"(\w+-)?non-?commercial(-\w+)*|\w+(-\w+)*-non-?commercial(-\w+)*|polyform-noncommercial{_VERSION}",
        _NON_COMMERCIAL,
    ),
    (rf"cc-?by-nd{_VERSION}", _NO_DERIVATIVES),
    (
        r"apache-?(license-?)?v?2(\.0)?(-embedded)?|mit(-license|-0)?|isc|cc0(-?1\.0)?|unlicense|public-domain|zlib",
        _PERMISSIVE,
    ),
    (
        r"bsd(-[0-4]-clause)?|0bsd|postgresql|ncsa|bsl-1\.0|python-2\.0|wtfpl",
        _PERMISSIVE,
    ),
    (rf"cc-?by-sa{_VERSION}", _SHARE_ALIKE),
    (rf"cc-?by{_VERSION}|odc-by{_VERSION}", _ATTRIBUTION),
    (
        r"(a|l)?gpl(-?v?[23](\.\d)?)?(-only|-or-later|\+)?|mpl(-?2\.0)?|epl-2\.0|odbl(-1\.0)?",
        _COPYLEFT,
    ),
    (r"llama-?(3\.[1-9]|4)(-community)?(-licen[sc]e)?(-agreement)?", _LLAMA),
    (r"llama-?[23](-community)?(-licen[sc]e)?(-agreement)?", _OLD_LLAMA),
    (r"gemma(-terms(-of-use)?)?(-licen[sc]e)?", _GEMMA),
)
_EXCEPTIONS = ("llvm-exception", "classpath-exception-2.0", "gcc-exception-3.1")
"""SPDX's exceptions that only give more rights than the licence."""
_OPERATOR = re.compile(r"\s+(and|or|with)\s+|\s*([,;+&])(?=\s|$)\s*", re.IGNORECASE)


def terms(name: str) -> Terms:
    """What a licence means, by its SPDX expression or a name like one; unknown names are `unknown`, never guessed.

    Of several that hold together ("MIT AND CC-BY-4.0", "MIT, CC-BY-4.0") the worst counts, of alternatives
    ("MIT OR GPL-3.0") the best.
    """
    return _read(name, lambda found: found)


def _read(name: str, seen: Callable[[Terms], Terms]) -> Terms:
    """The terms of an expression, in which each licence is `seen` as a teacher's or a judge's."""
    from license_expression import ExpressionError, Licensing

    words = _OPERATOR.split(
        name.strip()
    )  # a name, its operator (one of two groups), the next name, and so on
    names = [re.sub(r"[\s_]+", "-", word.strip()) for word in words[::3]]
    operators = [
        (word or "and").upper()
        for word in (words[n + 1] for n in range(0, len(words) - 1, 3))
    ]
    expression = " ".join(
        part for pair in zip(names, [*operators, ""], strict=True) for part in pair
    )
    expression = expression.replace("-(embedded)", "-embedded")
    try:
        tree = Licensing().parse(expression)
    except (ExpressionError, ValueError):
        return _UNKNOWN
    return _of_tree(tree, seen) if tree is not None else _UNKNOWN


def _of_tree(tree: "Expression", seen: Callable[[Terms], Terms]) -> Terms:
    """Of a parsed expression."""
    if operator := getattr(tree, "operator", "").strip().upper():
        found = [_of_tree(part, seen) for part in tree.args]
        return (
            max(found, key=_badness) if operator == "AND" else min(found, key=_badness)
        )
    if exception := getattr(tree, "exception_symbol", None):
        return (
            _of_tree(tree.license_symbol, seen)
            if exception.key.lower() in _EXCEPTIONS
            else _UNKNOWN
        )
    name = str(tree.key).lower()
    return seen(
        next(
            (found for pattern, found in _TABLE if re.fullmatch(pattern, name)),
            _UNKNOWN,
        )
    )


def _badness(found: Terms) -> int:
    return _WORST_LAST.index(found.verdict)


def causes(recipe: Recipe, rows: Iterable[tuple[str, str]] = ()) -> list[Cause]:
    """Every part whose licence binds the result: seeds that a scheme uses, teacher, base and judges.

    MT-Bench's judge is left out: it measures the result, and nothing of it enters.

    Args:
        recipe: its parts.
        rows: sources and licences of the seeds of rows that there are, of which the recipe may say something else.
    """
    seeds = [
        _source(part, kind) for kind, parts in _seeds_in_use(recipe) for part in parts
    ]
    known = {(cause.part.rpartition(" ")[2], cause.license) for cause in seeds}
    seeds += [
        Cause(f"rows from {source}", name, terms(name))
        for source, name in rows
        if (source, name) not in known
    ]
    judges = [_judge(part) for part in recipe.judges] if recipe.filter.judge else []
    base = Cause(
        f"base {recipe.base.model}", recipe.base.license, terms(recipe.base.license)
    )
    return list(dict.fromkeys([*seeds, *map(_teacher, recipe.teachers), base, *judges]))


class CommercialUse(TypedDict):
    """Whether a result may be sold, and which parts decide it."""

    verdict: str
    because: list[str]


def commercial_use(
    recipe: Recipe, rows: Iterable[tuple[str, str]] = ()
) -> CommercialUse:
    """The verdict of a whole recipe, or run: `{"verdict": ..., "because": [...]}`, the worst cause first."""
    found = sorted(causes(recipe, rows), key=lambda cause: -_badness(cause.terms))
    verdict = found[0].terms.verdict
    because = [
        str(cause) for cause in found if cause.terms.verdict != YES or verdict == YES
    ]
    return {"verdict": verdict, "because": because}


def _seeds_in_use(recipe: Recipe) -> list[tuple[str, tuple[SourceSection, ...]]]:
    seeds = recipe.seeds
    dolly = seeds.dolly if "dolly" in recipe.seeds_in_use else ()
    flan = seeds.flan if "flan" in recipe.seeds_in_use else ()
    own = tuple(recipe.sft.data.values())
    return [
        ("dolly seeds", dolly),
        ("FLAN seeds", flan),
        ("HH-RLHF seeds", seeds.hh_rlhf),
        ("own rows", own),
    ]


def _source(part: SourceSection, kind: str) -> Cause:
    name = (
        "Apache-2.0"
        if part.source == "tiny" and part.license == "unknown"
        else part.license
    )
    return Cause(f"{kind} {part.source}", name, terms(name))


def _teacher(part: ModelSection) -> Cause:
    """A licence that forbids to train on what the model says is none at all for a teacher."""

    def seen(found: Terms) -> Terms:
        return _TEACHES_ANYWAY if found in (_PROVIDER, _OLD_LLAMA) else found

    return Cause(f"teacher {part.model}", part.license, _read(part.license, seen))


def _judge(part: ModelSection) -> Cause:
    """What binds the weights, and what is made from them, does not bind a rating."""

    def seen(found: Terms) -> Terms:
        return _PERMISSIVE if found in (_LLAMA, _OLD_LLAMA, _GEMMA) else found

    return Cause(f"judge {part.model}", part.license, _read(part.license, seen))
