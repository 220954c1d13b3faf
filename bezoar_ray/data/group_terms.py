"""Words that name groups of people: which groups a text mentions, and its counterfactual."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple

import yaml
from pydantic import Field, ValidationError, model_validator

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Filter, Section

_WORD = re.compile(r"[^\W_]+")
_ARTICLE = re.compile(r"\b(a)n?(\s+)\Z", re.IGNORECASE)
_PERSON = "{person}"
_FIELD = "filter.groups"


class Group(NamedTuple):
    """A group of people, such as the women of the category gender."""

    category: str
    name: str


Terms = list[str | None]
"""The terms of one group. None stands where it has no counterpart to other groups."""
Text = Annotated[str, Field(min_length=1)]


class WordList(Section):
    """A word list, as it is written."""

    source: Text
    license: Text
    person: list[Text] = []
    categories: dict[str, dict[str, Terms]]
    occupations: list[Text] = []

    @model_validator(mode="after")
    def _check_counterparts(self) -> "WordList":
        for category, groups in self.categories.items():
            lengths = {name: len(terms) for name, terms in groups.items()}
            if len(groups) < 2 or len(set(lengths.values())) > 1:
                raise ValueError(
                    f"the category {category!r} has groups with {lengths} terms. Give "
                    "two or more groups of equally many terms, with ~ where a group "
                    "has no counterpart"
                )
        return self


@dataclass(frozen=True)
class _Term:
    words: tuple[str, ...]
    group: Group


class _TermMatch(NamedTuple):
    """A term in the words of a text, from one index to another."""

    start: int
    end: int
    term: _Term


class GroupTerms:
    """A word list.

    Args:
        text: The list, in the YAML form of `bezoar_ray/recipes/groups/english.yaml`.

    Raises:
        RecipeError: The list is malformed. The message says where.
    """

    def __init__(self, text: str):
        words = _parse(text)
        self.source = words.source
        """Where the words come from."""
        self.license = words.license
        self.groups: list[Group] = []
        """All groups, in the order of the list."""
        # By group, the term at each position of its category.
        self._rows: dict[Group, Terms] = {}
        for category, terms_by_name in words.categories.items():
            rows = _expand(list(terms_by_name.values()), words.person)
            for name, row in zip(terms_by_name, rows, strict=True):
                self.groups.append(Group(category, name))
                self._rows[self.groups[-1]] = row
        terms = []
        for group, row in self._rows.items():
            terms += [_Term(split_words(term), group) for term in row if term]
        self._terms_by_word = _by_first_word(terms)
        occupations = [
            _Term(split_words(form), Group("occupation", occupation))
            for occupation in words.occupations
            for form in (occupation, f"{occupation}s")
        ]
        self._occupations_by_word = _by_first_word(occupations)

    def mentions(self, words: Sequence[str]) -> set[Group]:
        """Return the groups that a text mentions, by its words (`split_words`)."""
        return {match.term.group for match in _find(words, self._terms_by_word)}

    def occupations(self, words: Sequence[str]) -> set[str]:
        """Return the occupations that a text mentions, by its words."""
        found = _find(words, self._occupations_by_word)
        return {match.term.group.name for match in found}

    def others(self, group: Group) -> list[Group]:
        """Return the other groups of a group's category."""
        return [
            other
            for other in self.groups
            if other.category == group.category and other != group
        ]

    def swap(self, text: str, first: Group, second: Group) -> str | None:
        """Exchange two groups in a text.

        Returns:
            The text with each term of one group replaced by its counterpart of the
            other. None if a term has no counterpart, or several.
        """
        places = list(_WORD.finditer(text))
        words = [place.group().casefold() for place in places]
        parts = []
        end = 0
        for match in _find(words, self._terms_by_word):
            if match.term.group not in (first, second):
                continue
            other = second if match.term.group == first else first
            counterparts = self._counterparts(match.term, other)
            if len(counterparts) != 1:
                return None
            start = places[match.start].start()
            before = text[end:start]
            end = places[match.end - 1].end()
            replacement = _in_case_of(text[start:end], *counterparts)
            parts += [_with_article(before, replacement), replacement]
        return "".join([*parts, text[end:]])

    def _counterparts(self, term: _Term, other: Group) -> set[str]:
        """Return the terms of another group at the positions of a term."""
        counterparts = set()
        for own, counterpart in zip(
            self._rows[term.group], self._rows[other], strict=True
        ):
            if own and counterpart and split_words(own) == term.words:
                counterparts.add(counterpart)
        return counterparts


def group_terms(section: Filter) -> GroupTerms:
    """Return the word list of a recipe.

    Raises:
        RecipeError: The list cannot be read, or is malformed.
    """
    return _cached(section.group_terms())


@cache
def _cached(text: str) -> GroupTerms:
    return GroupTerms(text)


def _parse(text: str) -> WordList:
    try:
        return WordList.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"{_FIELD}: the word list is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the word list"
        raise RecipeError(
            f"{_FIELD}: {key}: {first['msg']}. The packaged list, "
            "bezoar_ray/recipes/groups/english.yaml, shows the form"
        ) from error


def _expand(groups: list[Terms], person: list[str]) -> list[Terms]:
    """Put each word for a person in place of `{person}`, for the groups of a category.

    A gap beside such a term becomes as many gaps, so that positions stay equal.
    """
    expanded: list[Terms] = [[] for _ in groups]
    for terms in zip(*groups, strict=True):
        has_slot = any(term and _PERSON in term for term in terms)
        for word in person if has_slot else [""]:
            for row, term in zip(expanded, terms, strict=True):
                row.append(term.replace(_PERSON, word) if term else None)
    return expanded


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a text without their case."""
    return tuple(word.casefold() for word in _WORD.findall(text))


def _by_first_word(terms: list[_Term]) -> dict[str, list[_Term]]:
    """Index terms by their first word, the longest terms first."""
    index = defaultdict(list)
    for term in sorted(set(terms), key=lambda term: len(term.words), reverse=True):
        index[term.words[0]].append(term)
    return dict(index)


def _find(
    words: Sequence[str], terms_by_word: dict[str, list[_Term]]
) -> Iterator[_TermMatch]:
    """Yield the terms in the words of a text, in order.

    Within a category, matches do not overlap and the longest one counts: an African
    American is no American of the same category, and a black woman is also a woman.
    """
    taken: dict[str, int] = {}  # by category, the index after its last match
    for index, word in enumerate(words):
        for term in terms_by_word.get(word, ()):
            category = term.group.category
            end = index + len(term.words)
            if taken.get(category, 0) > index or tuple(words[index:end]) != term.words:
                continue
            taken[category] = end
            yield _TermMatch(index, end, term)


def _in_case_of(original: str, replacement: str) -> str:
    """Return the replacement in capitals, or with one, as the original is written."""
    if len(original) > 1 and original.isupper():
        return replacement.upper()
    if original[0].isupper():
        return replacement[0].upper() + replacement[1:]
    return replacement


def _with_article(before: str, replacement: str) -> str:
    """Return the text before a replacement, with the article that it now needs."""
    n = "n" if replacement[0].casefold() in "aeiou" else ""
    return _ARTICLE.sub(rf"\g<1>{n}\g<2>", before)
