"""An approval is of the filter's rows as they are, and is seen in report and cards."""

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import recipe_of
from bezoar_ray.report.cards import dataset_card, model_card
from bezoar_ray.report.content import gather
from bezoar_ray.report.page import render
from bezoar_ray.review.approval import approve, current_approval
from bezoar_ray.store import Store
from tests.review.conftest import make_rows, write_run

SENTENCE = "Ada L. approved "


def manifest(store: Store, fingerprint: str) -> None:
    """The filter's manifest; without files, all rows of the run directory count."""
    content = {"fingerprint": fingerprint, "seconds": 1.0, "files": [], "summary": {}}
    store.replace_json("manifests/filter.json", content)


@pytest.fixture
def store(tmp_path) -> Store:
    """A run whose recipe asks for an approval."""
    found = write_run(tmp_path, make_rows(3, 2), "review={approve: true}")
    manifest(found, "f1")
    return found


def test_report_and_cards_name_the_person(store):
    recipe = recipe_of(store)
    assert "Nobody has approved these rows" in render(gather(recipe, store))
    approve(store, recipe, "Ada L.", "f1")
    content = gather(recipe, store)
    for text in (render(content), dataset_card(content), model_card(content, "sft")):
        assert SENTENCE in text
    assert "Nobody has approved" not in render(content)


def test_an_approval_ends_with_the_rows_that_it_is_of(store):
    recipe = recipe_of(store)
    approve(store, recipe, "Ada L.", "f1")
    manifest(store, "f2")
    assert current_approval(store) is None
    assert SENTENCE not in render(gather(recipe, store))
    with pytest.raises(RecipeError, match="nothing to approve"):
        approve(store, recipe, "Ada L.", "f1")
    # If the rows come back, so does the approval.
    manifest(store, "f1")
    assert current_approval(store).name == "Ada L."


def test_the_last_approval_of_the_same_rows_is_shown(store):
    recipe = recipe_of(store)
    approve(store, recipe, "Ada L.", "f1")
    approve(store, recipe, "Bob", "f1")
    assert current_approval(store).name == "Bob"


def test_an_approval_needs_a_name(store):
    with pytest.raises(RecipeError, match="--approve: the name is empty"):
        approve(store, recipe_of(store), "  ", "f1")
