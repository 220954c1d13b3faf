"""Whether the result of a recipe may be used commercially, and why.

The verdict is yes, with obligations, no, or unknown. It is a reading aid, not legal
advice: the table has the licenses that the usual parts of a recipe come under.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from bezoar_ray.recipe import ModelSection, Recipe, SourceSection

if TYPE_CHECKING:
    from boolean import Expression

YES = "yes"
OBLIGATIONS = "with obligations"
UNKNOWN = "unknown"
NO = "no"
_WORST_LAST = (YES, OBLIGATIONS, UNKNOWN, NO)


@dataclass(frozen=True)
class Terms:
    """The meaning of a license for selling what was made under it."""

    verdict: str
    note: str


@dataclass(frozen=True)
class Cause:
    """One part of the recipe, and the meaning of its license for the result."""

    part: str
    license: str
    terms: Terms

    def __str__(self) -> str:
        return f"{self.part} ({self.license}): {self.terms.note}"


_PERMISSIVE = Terms(
    YES, "permissive; keep the copyright notice with copies of the part itself"
)
_ATTRIBUTION = Terms(OBLIGATIONS, "name the authors, the license and your changes")
_SHARE_ALIKE = Terms(
    OBLIGATIONS,
    "name the authors, and publish data adapted from it under the same license "
    "(share-alike)",
)
_COPYLEFT = Terms(
    OBLIGATIONS, "copies and derived works must be distributed under the same license"
)
_NON_COMMERCIAL = Terms(NO, "for non-commercial use only")
_NO_DERIVATIVES = Terms(NO, "nothing adapted from it may be distributed")
_LLAMA = Terms(
    OBLIGATIONS,
    "carry the Llama name and license, follow its acceptable use policy, and ask Meta "
    "above 700 million users",
)
_OLD_LLAMA = Terms(
    OBLIGATIONS,
    "follow its acceptable use policy; its output may not improve language models of "
    "other families",
)
_GEMMA = Terms(
    OBLIGATIONS,
    "distribute Gemma's terms and prohibited uses with every model made from it or its "
    "output",
)
_PROVIDER = Terms(
    OBLIGATIONS,
    "its output may not be used to develop competing models. Here it only rates: none "
    "of its words are trained on. Read the terms to decide whether a filter is such a use",
)
# https://openrouter.ai/docs/guides/guides/distillation
_ROUTER = Terms(
    OBLIGATIONS,
    "the terms of each model's author and host apply; a teacher must be one that "
    "OpenRouter lists as distillable",
)
_OUTPUT_NOT_FOR_TRAINING = Terms(
    NO, "its output is the training data, and may not be used to make other models"
)
_UNKNOWN = Terms(
    UNKNOWN, "the table does not have this license; read it, and name it in the recipe"
)

# The terms of each name. A pattern must match the whole name: a name with anything more,
# such as "Apache-2.0-with-Commons-Clause", is unknown.
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
_HARMLESS_EXCEPTIONS = (
    "llvm-exception",
    "classpath-exception-2.0",
    "gcc-exception-3.1",
)
"""SPDX's exceptions that only give more rights than the license."""
_OPERATOR = re.compile(r"\s+(and|or|with)\s+|\s*([,;+&])(?=\s|$)\s*", re.IGNORECASE)

Adjust = Callable[[Terms], Terms]
"""Changes the terms of a license to those for a use, such as teaching or judging."""


def terms(name: str) -> Terms:
    """The terms of a license, by its SPDX expression or a similar name.

    Of several licenses that all apply ("MIT AND CC-BY-4.0", "MIT, CC-BY-4.0") the worst
    counts, of alternatives ("MIT OR GPL-3.0") the best. An unknown name has the verdict
    `unknown`; it is never guessed.
    """
    return _parse_terms(name, lambda license_terms: license_terms)


def _parse_terms(name: str, adjust: Adjust) -> Terms:
    """The terms of a license expression, with each license adjusted to its use."""
    from license_expression import ExpressionError, Licensing

    expression = _spdx_expression(name)
    try:
        # Without a list of known names: SPDX's lacks those of most models.
        tree = Licensing().parse(expression)
    except (ExpressionError, ValueError):
        return _UNKNOWN
    if tree is None:  # The expression is empty.
        return _UNKNOWN
    return _terms_of(tree, adjust)


def _spdx_expression(name: str) -> str:
    """A name in SPDX's syntax, in which the name of a license has no spaces.

    "Llama 3.1 Community License, MIT" becomes "Llama-3.1-Community-License AND MIT".
    """
    # The pattern has two groups, so a split gives a name, the operator's word or None,
    # its sign or None, the next name, and so on.
    parts = _OPERATOR.split(name.strip())
    expression = ""
    for position in range(0, len(parts), 3):
        if position > 0:
            word = parts[position - 2] or "and"
            expression += f" {word.upper()} "
        expression += re.sub(r"[\s_]+", "-", parts[position].strip())
    return expression.replace("-(embedded)", "-embedded")


def _terms_of(tree: "Expression", adjust: Adjust) -> Terms:
    """The terms of a parsed expression."""
    operator = getattr(tree, "operator", "").strip().upper()
    if operator:
        alternatives = [_terms_of(part, adjust) for part in tree.args]
        if operator == "AND":
            return max(alternatives, key=_badness)
        return min(alternatives, key=_badness)
    exception = getattr(tree, "exception_symbol", None)
    if exception:
        if exception.key.lower() in _HARMLESS_EXCEPTIONS:
            return _terms_of(tree.license_symbol, adjust)
        return _UNKNOWN
    name = str(tree.key).lower()
    for pattern, license_terms in _TABLE:
        if re.fullmatch(pattern, name):
            return adjust(license_terms)
    return adjust(_UNKNOWN)


def _badness(license_terms: Terms) -> int:
    return _WORST_LAST.index(license_terms.verdict)


def causes(recipe: Recipe, rows: Iterable[tuple[str, str]] = ()) -> list[Cause]:
    """Every part of a recipe whose license binds the result.

    These are the seeds that a scheme uses, the teachers, the base and the judges.
    Teachers and judges count only if there is a scheme. MT-Bench's judges are left out:
    they measure the result, and nothing of them enters it.

    Args:
        recipe: what is judged.
        rows: source and license of the seeds of existing rows. The recipe may have
            changed since they were made.
    """
    seeds = []
    known = set()
    for kind, sources in sources_in_use(recipe):
        for source in sources:
            cause = _source_cause(source, kind)
            seeds.append(cause)
            known.add((source.source, cause.license))
    for source_name, name in rows:
        if (source_name, name) not in known:
            seeds.append(Cause(f"rows from {source_name}", name, terms(name)))
    teachers = []
    # Without a scheme, they write and judge nothing.
    if recipe.schemes:
        teachers = [_teacher_cause(teacher) for teacher in recipe.teachers]
    base = recipe.base
    base_cause = Cause(f"base {base.model}", base.license, terms(base.license))
    judges = []
    if recipe.filter.judge and recipe.schemes:
        judges = [_judge_cause(judge) for judge in recipe.judges]
    return list(dict.fromkeys([*seeds, *teachers, base_cause, *judges]))


class CommercialUse(TypedDict):
    """Whether a result may be sold, and the parts that decide it."""

    verdict: str
    because: list[str]


def commercial_use(
    recipe: Recipe, rows: Iterable[tuple[str, str]] = ()
) -> CommercialUse:
    """The verdict of a recipe or run, with its causes.

    The worst cause comes first. Permissive parts are named only if all parts are.

    Args:
        recipe: what is judged.
        rows: as for `causes`.
    """
    worst_first = sorted(
        causes(recipe, rows), key=lambda cause: _badness(cause.terms), reverse=True
    )
    # Never empty, as every recipe has a base.
    verdict = worst_first[0].terms.verdict
    because = []
    for cause in worst_first:
        if cause.terms.verdict != YES or verdict == YES:
            because.append(str(cause))
    return {"verdict": verdict, "because": because}


def sources_in_use(recipe: Recipe) -> list[tuple[str, tuple[SourceSection, ...]]]:
    """The recipe's data sources, with their kind in words."""
    seeds = recipe.seeds
    dolly = seeds.dolly if "dolly" in recipe.seeds_in_use else ()
    flan = seeds.flan if "flan" in recipe.seeds_in_use else ()
    return [
        ("dolly seeds", dolly),
        ("FLAN seeds", flan),
        ("HH-RLHF seeds", seeds.hh_rlhf),
        ("custom rows", tuple(recipe.sft.data.values())),
        *_reward_model_data(recipe),
    ]


def _reward_model_data(
    recipe: Recipe,
) -> list[tuple[str, tuple[SourceSection, ...]]]:
    """The sources that only a reward model learns from, with their kind in words."""
    if recipe.rm is None:
        return []
    return [
        ("rated answers", recipe.seeds.helpsteer),
        ("preferences", recipe.seeds.preferences),
    ]


def _source_cause(section: SourceSection, kind: str) -> Cause:
    name = section.license
    if section.source == "tiny" and name == "unknown":
        name = "Apache-2.0"
    return Cause(f"{kind} {section.source}", name, terms(name))


def _teacher_cause(section: ModelSection) -> Cause:
    """A license that forbids training on a model's output forbids it as a teacher."""

    def adjust(license_terms: Terms) -> Terms:
        if license_terms in (_PROVIDER, _OLD_LLAMA):
            return _OUTPUT_NOT_FOR_TRAINING
        return license_terms

    return Cause(
        f"teacher {section.model}",
        section.license,
        _parse_terms(section.license, adjust),
    )


def _judge_cause(section: ModelSection) -> Cause:
    """A license that binds the weights, and models made from them, binds no rating."""

    def adjust(license_terms: Terms) -> Terms:
        if license_terms in (_LLAMA, _OLD_LLAMA, _GEMMA):
            return _PERMISSIVE
        return license_terms

    return Cause(
        f"judge {section.model}",
        section.license,
        _parse_terms(section.license, adjust),
    )
