"""Drawn recipes, source files and endpoint answers: whatever comes, it ends in a row, or in an error that says why.

500 of each kind, the same in every run.
"""

import copy
import string
import tempfile
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.filter.rating_prompt import read_rating
from bezoar_ray.llm.chat import CallFailed, Reply, TryAgain
from bezoar_ray.llm.reasoning import without_reasoning
from bezoar_ray.llm.responses import read_answer, read_fault, to_exception
from bezoar_ray.plan import plan, render
from bezoar_ray.recipe import SourceSection, load_recipe, parse_recipe
from bezoar_ray.sources import read, read_own, read_pairs

DRAWN = settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
KNOWN = (BezoarError, CallFailed, TryAgain)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none()
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["", " ", "\x00", "tiny", "1", "<think>", "{", "{{ x }}", "é" * 300]
)
VALUES = st.recursive(
    NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


# Endpoints.

KEYS = (
    "choices",
    "usage",
    "error",
    "message",
    "content",
    "finish_reason",
    "code",
    "type",
    "detail",
    "errors",
    "status",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "completion_tokens_details",
    "text",
    "param",
)
BODIES = st.recursive(
    NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)


def as_json(value):
    try:
        return orjson.dumps(value)
    except (TypeError, ValueError):  # too large a number, half a character
        return repr(value).encode(errors="replace")


@DRAWN
@given(BODIES.map(as_json) | st.binary(max_size=60))
def test_any_answer_is_a_reply_or_a_known_fault(content):
    try:
        reply = read_answer(content, "m at http://x/v1")
    except KNOWN as error:
        assert str(error)
        return
    assert isinstance(reply, Reply) and isinstance(reply.text, str)
    assert min(reply.tokens_in, reply.tokens_out, reply.tokens_reasoning) >= 0
    assert orjson.dumps(reply)  # as the ledger keeps it


@DRAWN
@given(st.integers(300, 599), BODIES)
def test_any_fault_is_classified(status, body):
    error = to_exception(read_fault(status, body), "m at http://x/v1", "KEY")
    assert isinstance(error, KNOWN) and str(error).startswith(
        "m at http://x/v1 answers"
    )


@DRAWN
@given(
    st.lists(
        TEXTS
        | st.sampled_from(
            ['"rating": ', "5", "{", "}", '"', "'", ",", "</think>", "\\"]
        ),
        max_size=12,
    )
)
def test_any_reply_of_a_judge_is_a_rating_or_none(parts):
    found = read_rating(without_reasoning("".join(parts)))
    assert found is None or 1 <= found[0] <= 5


# Sources.

FIELDS = (
    "instruction",
    "context",
    "response",
    "category",
    "inputs",
    "targets",
    "task_source",
    "task_name",
    "template_type",
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "role",
    "content",
    "from",
    "value",
)
ROWS = st.dictionaries(
    st.sampled_from(FIELDS),
    VALUES | st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES)),
)
LINES = st.lists(ROWS.map(as_json) | st.binary(max_size=40), max_size=6)
READERS = {
    "dolly": lambda part: read([part], "dolly"),
    "flan": lambda part: read([part], "flan"),
    "pairs": lambda part: read_pairs([part]),
    "own": lambda part: read_own(part, "mine"),
}


@pytest.mark.parametrize("kind", READERS)
@settings(DRAWN, max_examples=125)
@given(LINES, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_every_row_of_any_file_is_read_or_named(kind, lines, encoding):
    lines = [line.replace(b"\n", b" ").replace(b"\r", b" ") for line in lines]
    data = b"\n".join(lines)
    if encoding != "utf-8":
        data = data.decode(errors="replace").encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        path.write_bytes(data)
        try:
            loaded = READERS[kind](SourceSection(source=str(path), license="MIT"))
        except RecipeError as error:
            assert str(path) in str(error)
            return
    # JSON knows ASCII's white space alone: a line of other blanks, such as \x1c or \xa0, is a row that fails.
    blank = string.whitespace + "\x00"
    written = [
        line
        for line in data.decode(encoding, errors="replace").split("\n")
        if line.strip(blank)
    ]
    assert len(loaded.rows) + len(loaded.failed) <= len(written) + data.count(b"\x00")
    assert len(loaded.rows) + len(loaded.failed) >= sum(
        line.isprintable() for line in written
    )
    assert all("rows.jsonl:" in message for message in loaded.failed)
    assert orjson.dumps(loaded.failed)


# Recipes.


def places(tree, path=()):
    """All places in a recipe's tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


TREES = {
    name: load_recipe(name).model_dump(mode="json")
    for name in ("tiny", "one-gpu", "openbezoar-3b")
}
PLACES = [(name, place) for name, tree in TREES.items() for place in places(tree)]


@DRAWN
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_any_change_of_a_recipe_is_planned_or_refused_with_its_reason(changes):
    name = changes[0][0][0]
    tree = copy.deepcopy(TREES[name])
    for (of, place), value in changes:
        if of == name:
            change(tree, place, value)
    try:
        recipe = parse_recipe(tree, "drawn.yaml")
        text = render(plan(recipe))
    except RecipeError as error:
        assert str(error)
        return
    assert "nothing has run" in text


def change(tree, place, value):
    """Put a value there, where the place is still there."""
    *parents, last = place
    for key in parents:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(tree, dict) or (
        isinstance(tree, list) and isinstance(last, int) and last < len(tree)
    ):
        tree[last] = value
