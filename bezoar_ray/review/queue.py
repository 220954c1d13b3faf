"""The rows that reviewers still have to decide on, and what they decide."""

import hashlib
import re
from dataclasses import replace
from typing import Any

import orjson

from bezoar_ray.data.decision import Decision, latest, now
from bezoar_ray.data.schema import Sample
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Recipe
from bezoar_ray.review.decisions import DecisionLog
from bezoar_ray.review.sample import draw_rows, iter_reviewable
from bezoar_ray.store import Store

_LEAD = re.compile(r"^(and |A good row has )")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+(.+)$", re.MULTILINE)
_MOST_CRITERIA = 9
"""One for each digit of the keyboard."""


class ReviewQueue:
    """The rows of a run that people review, in the same order for each of them.

    Raises:
        RecipeError: The run has no rows that can be reviewed.
    """

    def __init__(self, store: Store, recipe: Recipe, count: int):
        drawn = draw_rows(
            iter_reviewable(store, recipe),
            recipe.seed,
            recipe.filter.accept_rating,
            count,
        )
        if not drawn:
            raise RecipeError(
                f"{store.root} has no rows to review. Carry out its stages generate and "
                "filter first"
            )
        self._rows = {sample.id: sample for sample in drawn}
        self._rubrics = {name: recipe.filter.rubric(name) for name in recipe.schemes}
        self._judge = judge_fingerprint(recipe)
        self._log = DecisionLog(store)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, id: str) -> Sample:
        """Return a row by its id.

        Raises:
            RecipeError: It is none of the rows under review.
        """
        if id not in self._rows:
            raise RecipeError(
                f"no row {id!r} is under review here. Load the page again"
            )
        return self._rows[id]

    def rubric(self, sample: Sample) -> str:
        """Return the rubric of a row's scheme."""
        return self._rubrics[sample.scheme]

    def remaining(self, reviewer: str) -> list[Sample]:
        """Return the rows that a reviewer has not decided on, in order."""
        decided = {id for id, name in latest(self._log.read()) if name == reviewer}
        return [sample for id, sample in self._rows.items() if id not in decided]

    def decide(self, decision: Decision) -> None:
        """Keep a decision on one of the rows. It is durable when this returns.

        Time, scheme and fingerprints are set here. Texts that equal the row's own are
        no edits.

        Raises:
            RecipeError: The row is not under review, or the decision is incomplete.
            BezoarError: The decision cannot be written.
        """
        sample = self.row(decision.id)
        if not decision.reviewer.strip():
            raise RecipeError("reviewer: empty. Enter a name")
        unchanged: dict[str, Any] = {}
        for name, text in decision.edits.items():
            if text == getattr(sample, name):
                unchanged[name] = None
            elif name != "input" and not text.strip():
                raise RecipeError(f"{name}: empty. Write a text, or reject the row")
        decision = replace(decision, **unchanged)
        if decision.edits and decision.decision != "accept":
            raise RecipeError("only an accepted row can be edited")
        self._log.append(
            replace(
                decision,
                scheme=sample.scheme,
                time=now(),
                rubric=rubric_fingerprint(self.rubric(sample)),
                judge=self._judge,
            )
        )

    def undo(self, reviewer: str) -> Sample | None:
        """Withdraw the last decision of a reviewer.

        Returns:
            Its row; None if there is no decision on one of these rows.
        """
        for (id, name), decision in reversed(latest(self._log.read()).items()):
            if name == reviewer and id in self._rows:
                withdrawn = Decision(id, decision.scheme, "undo", reviewer, now())
                self._log.append(withdrawn)
                return self._rows[id]
        return None


def criteria(rubric: str) -> list[str]:
    """Return the demands of a rubric, as reasons for a rejection.

    They are its list items or, if it has none, the clauses of its sentences.
    """
    found = _BULLET.findall(rubric)
    if not found:
        found = re.split(r"[,;.](?:\s+|$)", rubric)
    demands = [_LEAD.sub("", clause.strip()) for clause in found]
    return [demand for demand in demands if demand][:_MOST_CRITERIA]


def rubric_fingerprint(rubric: str) -> str:
    """Return 16 hex digits that identify a rubric."""
    return hashlib.sha256(rubric.strip().encode()).hexdigest()[:16]


def judge_fingerprint(recipe: Recipe) -> str:
    """Return 16 hex digits that identify the judges of a recipe and their settings."""
    fields = [judge.fingerprint_fields() for judge in recipe.judges]
    return hashlib.sha256(
        orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    ).hexdigest()[:16]
