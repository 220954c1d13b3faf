"""The page in a real browser: what a reviewer does with the keyboard, and sees."""

from collections.abc import Iterator

import pytest

from bezoar_ray.data.decision import by_row, read_own_decisions
from bezoar_ray.store import Store
from tests.browser import Browser, browser
from tests.review.conftest import ATTACK
from tests.review.test_web import server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    """A tab of a browser."""
    with browser() as found:
        yield found


@pytest.fixture
def page(tab: Browser, run_store: Store) -> Iterator[Browser]:
    """The tab with the page of a run, which shows its first row."""
    with server(run_store, "--reviewer", "ada") as running:
        tab.open(str(running.address))
        tab.wait("!document.getElementById('row').hidden")
        tab.server = running
        yield tab


def shown(page: Browser) -> str:
    """The id of the row that is shown."""
    return page.text("id")


def press(page: Browser, key: str, decided: int, **more: bool) -> None:
    """Press a key, and wait until the page says that so many rows are decided."""
    page.press(key, **more)
    page.wait(
        f"document.getElementById('progress').textContent.startsWith('{decided} of')"
    )


def decisions(store: Store) -> dict[str, tuple[str, str]]:
    found = by_row(read_own_decisions(store))
    return {id: (one.decision, one.reason) for id, one in found.items()}


def test_rows_are_decided_by_keys_alone(page, run_store):
    accepted = shown(page)
    assert page.text("progress") == "0 of 10 decided"
    press(page, "a", 1)
    rejected = shown(page)
    page.press("r")
    page.wait("document.activeElement.id === 'reason'")
    press(page, "1", 2)
    explained = shown(page)
    page.press("r")
    page.type("wrong sum")
    press(page, "Enter", 3)
    skipped = shown(page)
    press(page, "s", 4)
    found = decisions(run_store)
    first = page.value("row.reasons[0]")
    assert found == {
        accepted: ("accept", ""),
        rejected: ("reject", f"fails: {first}"),
        explained: ("reject", "wrong sum"),
    }
    assert len({accepted, rejected, explained, skipped}) == 4


def test_undo_shows_the_row_again(page, run_store):
    first = shown(page)
    press(page, "a", 1)
    press(page, "u", 0)
    assert shown(page) == first and decisions(run_store) == {}


def test_texts_are_edited_in_place(page, run_store):
    first = shown(page)
    page.press("e")
    page.wait("document.activeElement.id === 'response'")
    # Letters are text now, and no commands.
    page.value("document.getElementById('response').select()")
    page.type("A better answer, as u see")
    press(page, "Enter", 1, control=True)
    (decision,) = read_own_decisions(run_store)
    assert decision.id == first
    assert decision.edits == {"response": "A better answer, as u see"}


def test_escape_leaves_an_edit_and_a_rejection(page, run_store):
    first = shown(page)
    text = page.text("response")
    page.press("e")
    page.type("nonsense")
    page.press("Escape")
    assert page.text("response") == text
    page.press("r")
    page.press("Escape")
    assert page.value("document.getElementById('reasons').hidden")
    assert shown(page) == first and decisions(run_store) == {}


def test_the_verdict_is_shown_after_the_decision_only(page):
    assert "secret reason" not in page.value("document.documentElement.outerHTML")
    press(page, "a", 1)
    assert "tiny-judge" in page.text("verdicts")
    assert "secret reason" in page.text("verdicts")


def test_a_script_in_a_row_is_shown_and_does_nothing(page):
    title = page.value("document.title")
    for decided in range(1, 11):
        assert ATTACK in page.text("response")
        press(page, "a", decided)
    assert page.value("document.title") == title
    assert page.value("document.images.length") == 0
    assert page.value("document.scripts.length") == 2
    assert not page.value("document.getElementById('end').hidden")


def test_a_wrong_token_shows_no_row(page):
    address = page.server.address
    page.open(str(address.copy_with(path="/wrong/")))
    assert "Wrong or missing token" in page.value("document.body.innerText")


def test_a_decision_that_is_not_saved_is_reported_and_can_be_made_again(
    page, run_store
):
    first = shown(page)
    page.server.process.kill()
    page.server.process.wait()
    page.press("a")
    page.wait("!document.getElementById('problem').hidden")
    assert "Not saved" in page.text("problem")
    assert shown(page) == first and decisions(run_store) == {}
    # With a new server on the run directory, the row comes again.
    with server(run_store, "--reviewer", "ada") as running:
        page.open(str(running.address))
        page.wait("!document.getElementById('row').hidden")
        assert shown(page) == first
        press(page, "a", 1)
    assert set(decisions(run_store)) == {first}


def test_two_reviewers_use_one_server(page, run_store):
    first = shown(page)
    with browser() as other:
        other.open(str(page.server.address))
        other.wait("!document.getElementById('row').hidden")
        other.value(
            "document.getElementById('reviewer').value = 'bob';"
            "document.getElementById('reviewer').dispatchEvent(new Event('change'))"
        )
        press(page, "a", 1)
        assert shown(other) == first
        press(other, "r", 0)
        other.wait("!document.getElementById('reasons').hidden")
        press(other, "Enter", 1)
    names = {one.reviewer for one in read_own_decisions(run_store)}
    assert names == {"ada", "bob"}
