"""May the result of a recipe be used commercially? Yes, with obligations, no, or unknown, each with its causes.

This is a reading aid, not legal advice: the table holds the licences that the recipe's usual parts come under.
"""

import re
from dataclasses import dataclass

from bezoar_ray.recipe import ModelPart, Recipe, SourcePart

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


_PERMISSIVE = Terms(YES, "permissive; keep the copyright notice with copies of the part itself")
_ATTRIBUTION = Terms(OBLIGATIONS, "name the authors, the licence and your changes")
_SHARE_ALIKE = Terms(
    OBLIGATIONS, "name the authors, and publish data adapted from it under the same licence (share-alike)"
)
_COPYLEFT = Terms(OBLIGATIONS, "copies and derived works must be passed on under the same licence")
_NON_COMMERCIAL = Terms(NO, "for non-commercial use only")
_NO_DERIVATIVES = Terms(NO, "nothing adapted from it may be passed on")
_LLAMA = Terms(
    OBLIGATIONS, "carry the Llama name and licence, keep to its acceptable use, and ask Meta above 700 million users"
)
_OLD_LLAMA = Terms(
    OBLIGATIONS, "keep to its acceptable use; its output may not improve language models of other families"
)
_GEMMA = Terms(OBLIGATIONS, "pass on Gemma's terms and prohibited uses with every model made from it or its output")
_PROVIDER = Terms(
    OBLIGATIONS,
    "its output may not be used to develop competing models. Here it only rates: none of its words are trained on; "
    "whether a filter is such a use is for your own reading of the terms",
)
_ROUTER = Terms(
    OBLIGATIONS,
    "it passes on the terms of each model's author and host; a teacher has to be one that it lists as distillable",
)  # https://openrouter.ai/docs/guides/guides/distillation
_TEACHES_ANYWAY = Terms(NO, "its output is the training data, and may not be used to make other models")
_UNKNOWN = Terms(UNKNOWN, "no licence that the table knows; read it, and name it in the recipe")

# The first pattern that matches the start of the normalised name counts.
_TABLE = (
    (r"(openai|anthropic|google|mistral-?ai|cohere|xai)-(api|terms|tos)", _PROVIDER),
    (r"openrouter-(api|terms|tos)", _ROUTER),
    (r"cc-?by-(sa-)?nc|.*non-?commercial|research-only|mistral-research|mrl\b", _NON_COMMERCIAL),
    (r"cc-?by-nd", _NO_DERIVATIVES),
    (r"apache-?2|mit\b|bsd-|isc\b|cc0|unlicense|public-domain|postgresql|zlib", _PERMISSIVE),
    (r"cc-?by-sa", _SHARE_ALIKE),
    (r"cc-?by", _ATTRIBUTION),
    (r"odc-by", _ATTRIBUTION),
    (r"a?gpl|lgpl|mpl", _COPYLEFT),
    (r"llama-?(3\.[1-9]|4)", _LLAMA),
    (r"llama-?[23]", _OLD_LLAMA),
    (r"gemma", _GEMMA),
)


def terms(name: str) -> Terms:
    """What a licence means, by its SPDX-like name; unknown names are `unknown`, never guessed.

    Of several ("MIT and CC-BY-4.0") the worst counts.
    """
    return max(_each(name), key=_badness)


def _each(name: str) -> list[Terms]:
    """What each of the licences in a name means."""
    return [_terms(part) for part in re.split(r"\s+and\s+|[,;+&]", name, flags=re.IGNORECASE)]


def _terms(name: str) -> Terms:
    normal = re.sub(r"[\s_]+", "-", name.strip().lower())
    return next((found for pattern, found in _TABLE if re.match(pattern, normal)), _UNKNOWN)


def _badness(found: Terms) -> int:
    return _WORST_LAST.index(found.verdict)


def causes(recipe: Recipe) -> list[Cause]:
    """Every part whose licence binds the result: seeds that a scheme uses, teacher, base and judges.

    MT-Bench's judge is left out: it measures the result, and nothing of it enters.
    """
    seeds = [_source(part, kind) for kind, parts in _seeds_in_use(recipe) for part in parts]
    judges = [_judge(part) for part in recipe.judges] if recipe.filter.judge else []
    base = Cause(f"base {recipe.base.model}", recipe.base.license, terms(recipe.base.license))
    return list(dict.fromkeys([*seeds, *map(_teacher, recipe.teachers), base, *judges]))


def commercial_use(recipe: Recipe) -> dict[str, str | list[str]]:
    """The verdict of a whole recipe: `{"verdict": ..., "because": [...]}`, the worst cause first."""
    found = sorted(causes(recipe), key=lambda cause: -_badness(cause.terms))
    verdict = found[0].terms.verdict
    because = [str(cause) for cause in found if cause.terms.verdict != YES or verdict == YES]
    return {"verdict": verdict, "because": because}


def _seeds_in_use(recipe: Recipe) -> list[tuple[str, tuple[SourcePart, ...]]]:
    generate, seeds = recipe.generate, recipe.seeds
    dolly = seeds.dolly if generate.lamini or generate.evol_instruct else ()
    own = tuple(recipe.sft.data.values())
    flan = seeds.flan if generate.orca else ()
    return [("dolly seeds", dolly), ("FLAN seeds", flan), ("HH-RLHF seeds", seeds.hh_rlhf), ("own rows", own)]


def _source(part: SourcePart, kind: str) -> Cause:
    name = "Apache-2.0" if part.source == "tiny" and part.license == "unknown" else part.license
    return Cause(f"{kind} {part.source}", name, terms(name))


def _teacher(part: ModelPart) -> Cause:
    """Of several licences the worst counts, once each is read as a teacher's."""
    found = [_TEACHES_ANYWAY if each in (_PROVIDER, _OLD_LLAMA) else each for each in _each(part.license)]
    return Cause(f"teacher {part.model}", part.license, max(found, key=_badness))


def _judge(part: ModelPart) -> Cause:
    """The same as a judge's: what binds the weights, and what is made from them, does not bind a rating."""
    found = [_PERMISSIVE if each in (_LLAMA, _OLD_LLAMA, _GEMMA) else each for each in _each(part.license)]
    return Cause(f"judge {part.model}", part.license, max(found, key=_badness))
