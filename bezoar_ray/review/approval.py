"""Approvals: a named person agrees that training may begin on the filter's rows.

An approval is of one fingerprint. After a change that redoes the filter, the rows need
another one.
"""

import time
import uuid
from dataclasses import asdict, dataclass

from bezoar_ray import layout
from bezoar_ray.data.decision import by_row, now, read_own_decisions
from bezoar_ray.errors import RecipeError, ReviewNeeded
from bezoar_ray.recipe import Recipe
from bezoar_ray.stages import manifest_of
from bezoar_ray.store import Store


@dataclass(frozen=True)
class Approval:
    """What somebody approved."""

    name: str
    time: str
    fingerprint: str
    """That of the filter's manifest."""
    decided: int
    """Rows that people had decided on."""


def approve(store: Store, recipe: Recipe, name: str, fingerprint: str) -> Approval:
    """Approve the rows that the filter has left.

    Args:
        store: the run directory.
        recipe: its recipe.
        name: of the person who approves.
        fingerprint: that the filter has with this recipe and the present decisions.

    Raises:
        RecipeError: the name is empty, or the filter has other rows or none.
        ReviewNeeded: people have decided on too few rows.
    """
    if not name.strip():
        raise RecipeError("--approve: the name is empty. Give the name of a person")
    if _filter_fingerprint(store) != fingerprint:
        raise RecipeError(
            f"{store.root}: the filter is not done with this recipe and the present "
            f"decisions, so there is nothing to approve. `bezoar run "
            f"{store.root}/recipe.yaml --run-dir {store.root} --stages filter` does it"
        )
    decided = _count_decided(store)
    _check_decided(store, recipe, decided)
    approval = Approval(name.strip(), now(), fingerprint, decided)
    # A file each, since nothing can be appended in a bucket. Names sort by time.
    file = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}.json"
    store.replace_json(f"{layout.APPROVALS}/{file}", asdict(approval))
    return approval


def current_approval(store: Store) -> Approval | None:
    """Return the last approval of the rows that the filter has left, if there is one."""
    fingerprint = _filter_fingerprint(store)
    found = [
        Approval(**store.read_json(name))
        for name in store.list(layout.APPROVALS, ".json")
    ]
    valid = [approval for approval in found if approval.fingerprint == fingerprint]
    return max(valid, key=lambda approval: approval.time, default=None)


def check_review(store: Store, recipe: Recipe) -> None:
    """Check that people have reviewed the rows as the recipe asks.

    Raises:
        ReviewNeeded: decisions or the approval are missing. The message says which, and
            what to do.
    """
    if not recipe.review:
        return
    _check_decided(store, recipe, _count_decided(store))
    if recipe.review.approve and not current_approval(store):
        raise ReviewNeeded(
            "review.approve is true, and nobody has approved the rows that the filter "
            f"has left. Read them with `bezoar review {store.root}`. Then "
            f"`bezoar review {store.root} --approve NAME` approves them, and the same "
            "`bezoar run` goes on to training"
        )


def _check_decided(store: Store, recipe: Recipe, decided: int) -> None:
    required = recipe.review.required if recipe.review else 0
    if decided < required:
        raise ReviewNeeded(
            f"review.required is {required}, and people have decided on {decided} rows "
            f"(accepted or rejected them). Decide on {required - decided} more with "
            f"`bezoar review {store.root} --rows {max(required, 100)}`, and run the "
            "same command again"
        )


def _count_decided(store: Store) -> int:
    return len(by_row(read_own_decisions(store)))


def _filter_fingerprint(store: Store) -> str | None:
    manifest = store.read_json(manifest_of("filter", store)) or {}
    return manifest.get("fingerprint")
