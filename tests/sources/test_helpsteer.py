"""Rated answers: HelpSteer2's rows, rows with columns of their own, and the published data."""

import math
import random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bezoar_ray import sources
from bezoar_ray.data.schema import (
    ATTRIBUTES,
    Rating,
    rating_schema,
    rating_table,
)
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import RatingSource
from bezoar_ray.sources import conversations, helpsteer
from bezoar_ray.sources.record import Origin, value_at

ORIGIN = Origin("HelpSteer2/train.jsonl.gz", 7, "CC-BY-4.0")
ROW = {
    "prompt": "What is 2 + 2?",
    "response": "It is 4.",
    "helpfulness": 3,
    "correctness": 4,
    "coherence": 4,
    "complexity": 1,
    "verbosity": 0,
}
ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Name a fruit.",
    "models": ["a", "b"],
    "completions": [
        {
            "model": name,
            "response": text,
            "overall_score": 7.5,
            "annotations": {
                "helpfulness": {"Rating": helpful, "Rationale": "…", "Type": ["1"]},
                "truthfulness": {"Rating": true, "Rationale": "…", "Type": ["1"]},
            },
        }
        for name, text, helpful, true in (
            ("a", "An apple.", "5", "2"),
            ("b", "A stone.", "1", "N/A"),
        )
    ],
}
"""A row of openbmb/UltraFeedback, whose ratings are text from 1 to 5, or "N/A"."""


def source(path, **fields) -> RatingSource:
    return RatingSource(source=str(path), **fields)


def write(path, rows) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def test_a_row_of_helpsteer2_becomes_a_rated_answer():
    rated = helpsteer.rating(ROW, ORIGIN)
    assert rated.conversation() == [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "It is 4."},
    ]
    assert rated.ratings == [3.0, 4.0, 4.0, 1.0, 0.0]
    assert (rated.source, rated.license) == (ORIGIN.source, "CC-BY-4.0")
    assert rated.id == ORIGIN.id("helpsteer")


def test_a_table_gives_the_rated_answers_back():
    rows = [
        helpsteer.rating(ROW, ORIGIN),
        helpsteer.rating({**ROW, "verbosity": None}, ORIGIN),
    ]
    table = rating_table(rows)
    assert table.schema == rating_schema()
    assert [Rating(**row) for row in table.to_pylist()] == rows
    assert rows[1].ratings[-1] is None


@pytest.mark.parametrize(
    "prompt",
    [
        "Hello\n<extra_id_1>Assistant\nHi.\n<extra_id_1>User\nTwo\n\nlines?",
        "Hello\r\n<extra_id_1>Assistant\r\nHi.\r\n<extra_id_1>User\r\nTwo\r\n\r\nlines?",
        "<extra_id_1>User\nHello\n<extra_id_1>Assistant\nHi.\n<extra_id_1>User\nTwo\n\nlines?\n<extra_id_1>Assistant\n",
        "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Two\n\nlines?",
        "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Two\n\nlines?\n\nAssistant:",
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "Two\n\nlines?"},
        ],
        [
            {"from": "human", "value": "Hello"},
            {"from": "gpt", "value": "Hi."},
            {"from": "human", "value": "Two\n\nlines?"},
        ],
    ],
)
def test_a_prompt_of_several_turns_is_read_in_each_form(prompt):
    assert helpsteer.rating({**ROW, "prompt": prompt}, ORIGIN).prompt == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Two\n\nlines?"},
    ]


def test_nemos_system_turn_stays_the_system_message():
    prompt = "<extra_id_0>System\nBe brief.\n<extra_id_1>User\nWhy?"
    assert conversations.read_prompt(prompt, "prompt") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]


turn_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: (
        text.strip()
        and "<extra_id" not in text
        and not conversations.is_transcript(text)
    )
)


@given(
    st.lists(turn_texts, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2)
)
def test_turns_that_helpsteer2_marks_come_back(texts):
    marked = texts[0]
    for index, text in enumerate(texts[1:]):
        marked += f"\n<extra_id_1>{('Assistant', 'User')[index % 2]}\n{text}"
    messages = conversations.read_prompt(marked, "prompt")
    expected = [
        text.replace("\r\n", "\n").replace("\r", "\n").strip() for text in texts
    ]
    assert [message["content"] for message in messages] == expected
    assert [message["role"] for message in messages[:2]] == ["user", "assistant"][
        : len(messages)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"helpfulness": 5}, "`helpfulness` is 5, outside 0 to 4. Set `scale`"),
        ({"verbosity": -0.5}, "`verbosity` is -0.5, outside 0 to 4"),
        ({"coherence": "good"}, "`coherence` is 'good', not a number"),
        ({"coherence": True}, "`coherence` holds bool, not a number"),
        ({"coherence": [3]}, "`coherence` holds list, not a number"),
        ({"helpfulness": math.inf}, "`helpfulness` is inf, outside"),
        (dict.fromkeys(ATTRIBUTES), "no rating .looked for helpfulness, correctness"),
        ({"response": "  "}, "empty `response`"),
        ({"response": None}, "empty `response`"),
        ({"response": 4}, "`response` holds int, not text"),
        ({"prompt": ""}, "empty `prompt`"),
        ({"prompt": None}, "`prompt`: expected a list of messages, found none"),
        (
            {"prompt": "Q\n<extra_id_1>Assistant\nA"},
            "`prompt`: it ends with a turn of the assistant",
        ),
        (
            {"prompt": "Q\n<extra_id_1>User\nmore"},
            "`prompt`: two user turns follow each other",
        ),
        (
            {"prompt": "Q\n<extra_id_1>Assistant\n\n<extra_id_1>User\nmore"},
            "`prompt`: a turn is empty",
        ),
    ],
)
def test_a_malformed_row_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        helpsteer.rating({**ROW, **change}, ORIGIN)


@pytest.mark.parametrize("nothing", [None, math.nan, "", "N/A", "nan"])
def test_a_missing_rating_is_none_and_the_others_are_read(nothing):
    rated = helpsteer.rating({**ROW, "correctness": nothing}, ORIGIN)
    assert rated.ratings == [3.0, None, 4.0, 1.0, 0.0]
    without = {name: value for name, value in ROW.items() if name != "correctness"}
    assert helpsteer.rating(without, ORIGIN).ratings == rated.ratings


def test_each_answer_of_ultrafeedback_is_read_by_its_path(tmp_path):
    write(tmp_path / "flan.jsonl", [ULTRAFEEDBACK])
    sections = []
    for index in (0, 1):
        answer = f"completions.{index}"
        fields = {
            "prompt": "instruction",
            "response": f"{answer}.response",
            "helpfulness": f"{answer}.annotations.helpfulness.Rating",
        }
        if index == 0:
            fields["correctness"] = f"{answer}.annotations.truthfulness.Rating"
        sections.append(
            source(tmp_path / "flan.jsonl", fields=fields, scale=(1, 5), license="MIT")
        )
    loaded = sources.read_ratings(sections)
    assert loaded.failed == []
    assert [row.response for row in loaded.rows] == ["An apple.", "A stone."]
    assert [row.ratings[:2] for row in loaded.rows] == [[4.0, 1.0], [0.0, None]]
    assert len({row.id for row in loaded.rows}) == 2


def test_argillas_binarized_ultrafeedback_is_read_side_by_side(tmp_path):
    user = {"role": "user", "content": "Name a fruit."}
    row = {
        "prompt": "Name a fruit.",
        "chosen": [user, {"role": "assistant", "content": "An apple."}],
        "chosen-rating": 4.75,
        "rejected": [user, {"role": "assistant", "content": "A stone."}],
        "rejected-rating": 2.0,
    }
    write(tmp_path / "a.jsonl", [row])
    sections = [
        source(
            tmp_path / "a.jsonl",
            scale=(1, 5),
            fields={"response": f"{side}.1.content", "helpfulness": f"{side}-rating"},
        )
        for side in ("chosen", "rejected")
    ]
    rows = sources.read_ratings(sections).rows
    assert [(row.response, row.ratings[0]) for row in rows] == [
        ("An apple.", 3.75),
        ("A stone.", 1.0),
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a.b.1", 2),
        ("a.c", "has a dot"),
        ("a.b.2", None),
        ("a.b.x", None),
        ("a.b.-1", None),
        ("d.e", None),
        ("text.0", None),
    ],
)
def test_a_path_leads_to_one_value_or_to_none(path, value):
    row = {"a": {"b": [1, 2]}, "a.c": "has a dot", "text": "abc"}
    assert value_at(row, path) == value


@given(
    lowest=st.floats(-100, 100),
    width=st.floats(0.5, 100),
    share=st.floats(0, 1),
)
def test_a_scale_is_mapped_linearly_to_0_to_4(lowest, width, share):
    highest = lowest + width

    def rate(value: float) -> float:
        row = {"prompt": "Q", "response": "A", "helpfulness": value}
        rated = helpsteer.rating(row, ORIGIN, scale=(lowest, highest))
        return rated.ratings[0]

    assert rate(lowest) == 0
    assert rate(highest) == 4
    between = min(lowest + share * width, highest)
    assert rate(between) == pytest.approx(4 * share, abs=1e-9)


def test_a_column_that_no_row_has_is_named_with_its_field(tmp_path):
    write(tmp_path / "a.jsonl", [ROW, ROW])
    section = source(tmp_path / "a.jsonl", fields={"coherence": "coherense"})
    with pytest.raises(
        RecipeError, match=r"no row of .*a\.jsonl' has a rating in 'coherense' \(fields"
    ):
        sources.read_ratings([section])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (4, 0)}, "expected the lowest and the highest rating"),
        ({"scale": (0, math.inf)}, "expected the lowest and the highest rating"),
        ({"fields": {"kindness": "k"}}, "Input should be 'prompt', 'response', 'help"),
        ({"fields": {"prompt": ""}}, r"fields\.prompt: it is empty"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        source("a.jsonl", **fields)


def test_malformed_rows_are_named_and_the_others_are_read(tmp_path):
    write(tmp_path / "a.jsonl", [ROW, {**ROW, "helpfulness": 9}, ROW])
    loaded = sources.read_ratings([source(tmp_path / "a.jsonl")])
    assert len(loaded.rows) == 2
    (message,) = loaded.failed
    assert message.startswith(f"{tmp_path}/a.jsonl:2: `helpfulness` is 9")


PUBLISHED = {
    "helpfulness": (2.8655, 1.2703),
    "correctness": (2.9644, 1.2689),
    "coherence": (3.6393, 0.6491),
    "complexity": (1.7048, 0.6986),
    "verbosity": (1.9999, 0.7571),
}
"""Means and standard deviations of arXiv 2406.08673, table 1."""


def with_moments(rng, count: int, mean: float, deviation: float) -> list[int]:
    """Ratings from 0 to 4 with about this mean and standard deviation."""
    weights = [math.exp(-power) for power in fit_exponents(mean, deviation)]
    return rng.choices(range(5), weights, k=count)


def fit_exponents(mean: float, deviation: float) -> list[float]:
    """Exponents a*k + b*k*k whose distribution on 0 to 4 has the two moments."""
    a = b = 0.0
    for _ in range(4000):
        weights = [math.exp(-(a * k + b * k * k)) for k in range(5)]
        total = sum(weights)
        first = sum(k * w for k, w in enumerate(weights)) / total
        second = sum(k * k * w for k, w in enumerate(weights)) / total
        a += 0.05 * (first - mean)
        b += 0.02 * (second - (deviation**2 + mean**2))
    return [a * k + b * k * k for k in range(5)]


@pytest.fixture(scope="module")
def like_helpsteer2() -> dict[str, list[Rating]]:
    rng = random.Random(0)
    splits = {}
    for split, count in (("train", 20_324), ("validation", 1_038)):
        columns = [with_moments(rng, count, *PUBLISHED[name]) for name in ATTRIBUTES]
        splits[split] = [
            Rating("i", "s", "l", [], "r", [float(value) for value in values])
            for values in zip(*columns, strict=True)
        ]
    return splits


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_like_the_published_ones_pass(split, like_helpsteer2):
    rows = like_helpsteer2[split]
    assert helpsteer.check_helpsteer2(rows, split) == []
    assert helpsteer.check_helpsteer2(rows[:-3], split, failed=3) == []


def test_a_split_with_rows_missing_or_changed_ratings_is_noticed(like_helpsteer2):
    rows = like_helpsteer2["train"]
    (message,) = [
        text
        for text in helpsteer.check_helpsteer2(rows[:-1], "train")
        if "rows" in text
    ]
    assert message == "20,323 rows in train, where HelpSteer2 has 20,324"
    swapped = [
        Rating("i", "s", "l", [], "r", [row.ratings[0], *row.ratings[4:0:-1]])
        for row in rows
    ]
    text = "; ".join(helpsteer.check_helpsteer2(swapped, "train"))
    assert "the mean of correctness is 2.00" in text
    assert "the standard deviation of coherence is" in text
    unrated = [Rating("i", "s", "l", [], "r", [None] * 5)] * 20_324
    assert "no rating of verbosity" in helpsteer.check_helpsteer2(unrated, "train")


def test_a_file_that_should_be_helpsteer2_is_checked_unless_limited(tmp_path):
    path = tmp_path / "HelpSteer2/train.jsonl"
    write(path, [ROW] * 20)
    with pytest.raises(
        RecipeError,
        match=r"is not HelpSteer2 as published: 20 rows in train, where .* set `limit`",
    ):
        sources.read_ratings([source(path)])
    assert len(sources.read_ratings([source(path, limit=10)]).rows) == 10
    write(tmp_path / "mine/train.jsonl", [ROW] * 20)
    assert len(sources.read_ratings([source(tmp_path / "mine/train.jsonl")]).rows) == 20


def test_the_published_splits_are_known_by_name_and_size(tmp_path):
    hub = source("hub:nvidia/HelpSteer2", revision="0" * 40, split="validation")
    assert helpsteer.published_split(hub) == "validation"
    assert helpsteer.published_split(hub.model_copy(update={"limit": 5})) is None
    path = tmp_path / "validation.jsonl.gz"
    path.write_bytes(b"\0" * 582_000)
    assert helpsteer.published_split(source(path)) == "validation"
    path.write_bytes(b"\0" * 58_200)
    assert helpsteer.published_split(source(path)) is None
