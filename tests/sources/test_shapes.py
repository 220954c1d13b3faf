"""What each shape of row becomes, and what is said of one that is malformed."""

import pytest

from bezoar_ray.sources import conversations, dolly, flan, hh_rlhf
from bezoar_ray.sources.record import Origin

ORIGIN = Origin("folder/rows.jsonl", 7, "MIT")
QUERY = {
    "inputs": "2 + 2?",
    "targets": "4",
    "task_source": "P3",
    "task_name": "sums",
    "template_type": "zs_noopt",
}


def test_a_dolly_row_loses_its_citation_marks():
    row = {
        "instruction": "When?",
        "context": "In 1990.[42] Or[3][4] so.",
        "response": "1990",
        "category": "closed_qa",
    }
    seed = dolly.seed(
        row, Origin("hub:databricks/databricks-dolly-15k", 1, "CC-BY-SA-3.0")
    )
    assert seed.input == "In 1990. Or so."
    assert (seed.license, seed.category) == ("CC-BY-SA-3.0", "closed_qa")
    assert seed.task == "When?\n\nInput:\nIn 1990. Or so."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "x"}, "no `instruction`"),
        ({"instruction": "  "}, "empty `instruction`"),
        ({"instruction": 3}, "`instruction` holds int"),
    ],
)
def test_a_malformed_dolly_row_says_what_is_wrong(row, message):
    with pytest.raises(ValueError, match=message):
        dolly.seed(row, ORIGIN)


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ("P3", "T0"),
        ("NIv2", "NIV2"),
        ("Flan2021", "Flan2021"),
        ("CoT", "CoT"),
        ("Dialog", "Dialog"),
    ],
)
def test_flan_sub_mixtures_get_the_papers_names(found, name):
    seed = flan.seed(QUERY | {"task_source": found}, ORIGIN)
    assert (seed.task_source, seed.instruction, seed.response) == (name, "2 + 2?", "4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ""}, "empty `targets`"),
        ({"targets": None}, "empty `targets`"),
        ({"task_source": "Alpaca"}, "'Alpaca'"),
        ({"template_type": "zs"}, "'zs'"),
    ],
)
def test_a_malformed_flan_row_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        flan.seed(QUERY | change, ORIGIN)


def test_a_transcript_becomes_a_prompt_and_two_answers():
    start = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Two\n\nlines?\n\nAssistant:"
    pair = hh_rlhf.pair({"chosen": start + " Yes.", "rejected": start + " No."}, ORIGIN)
    assert pair.prompt == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Two\n\nlines?"},
    ]
    assert (pair.chosen, pair.rejected) == ("Yes.", "No.")
    assert pair.conversation()[-1] == {"role": "assistant", "content": "Yes."}


def test_a_mark_within_a_paragraph_is_text():
    turns = conversations.read(
        "\n\nHuman: Write 'Assistant: hi'\n\nAssistant: Human: no", "chosen"
    )
    assert [turn["content"] for turn in turns] == ["Write 'Assistant: hi'", "Human: no"]


ASKED = "\n\nHuman: Q\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        (ASKED + " a", ASKED + " a ", "identical"),
        (ASKED + " a", ASKED, "`rejected`: a turn is empty"),
        (ASKED + " a", "\n\nHuman: other\n\nAssistant: b", "differ before"),
        ("hello", ASKED + " b", "`chosen`: it does not begin"),
        (
            ASKED + " a\n\nHuman: more",
            ASKED + " b",
            "does not end with an Assistant turn",
        ),
        (ASKED + " a\n\nAssistant: b", ASKED + " b", "turns follow each other"),
        ("\n\nAssistant: a", "\n\nAssistant: b", "answers a Human one"),
    ],
)
def test_a_malformed_pair_says_what_is_wrong(chosen, rejected, message):
    with pytest.raises(ValueError, match=message):
        hh_rlhf.pair({"chosen": chosen, "rejected": rejected}, ORIGIN)


def test_windows_line_breaks_end_a_turn():
    crlf, lf = (
        hh_rlhf.pair(
            {
                side: f"{ASKED} {side}".replace("\n", end)
                for side in ("chosen", "rejected")
            },
            ORIGIN,
        )
        for end in ("\r\n", "\n")
    )
    assert crlf == lf and crlf.prompt == [{"role": "user", "content": "Q"}]


USER, GOOD, BAD = (
    {"role": role, "content": said}
    for role, said in (("user", "Q"), ("assistant", "good"), ("assistant", "bad"))
)
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (
            {"prompt": "Q", "chosen": "good", "rejected": "bad"},
            [USER],
        ),  # TRL: explicit prompt, texts
        (
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
            [USER],
        ),  # TRL: explicit prompt, conversational
        (
            {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
            [USER],
        ),  # TRL: implicit prompt
        (
            {"prompt": "Q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            [USER],
        ),  # UltraFeedback, binarised
        (
            {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]},
            [SYSTEM, USER],
        ),
        (
            {"prompt": [SYSTEM, USER], "chosen": "good", "rejected": "bad"},
            [SYSTEM, USER],
        ),
        (
            {"prompt": [USER, GOOD, USER], "chosen": "good", "rejected": "bad"},
            [USER, GOOD, USER],
        ),
        ({"prompt": "\n\nHuman: Q\n\n", "chosen": "good", "rejected": "bad"}, [USER]),
        (
            {"prompt": None, "chosen": f"{ASKED} good", "rejected": f"{ASKED} bad"},
            [USER],
        ),
        (
            {
                "chosen": [
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "good"},
                ],
                "rejected": [
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "bad"},
                ],
            },
            [USER],
        ),
    ],
)
def test_pairs_are_read_in_every_form_that_trl_documents(row, prompt):
    pair = hh_rlhf.pair(row, ORIGIN)
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "good", "bad")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": "good", "rejected": "bad"},
            "the row has no `prompt`. Known are transcripts, lists of messages",
        ),
        (
            {"prompt": 3, "chosen": "good", "rejected": "bad"},
            "`prompt`: expected a list of messages, found int",
        ),
        ({"prompt": "Q", "chosen": "good"}, "no `rejected`"),
        ({"prompt": "Q", "chosen": "good", "rejected": "good"}, "identical"),
        (
            {"prompt": "Q", "chosen": ["good"], "rejected": ["bad"]},
            "`chosen`: a message is str, not an object",
        ),
        (
            {
                "chosen": [USER, {"role": "tool", "content": "x"}],
                "rejected": [USER, BAD],
            },
            "the role 'tool'",
        ),
        (
            {
                "chosen": [USER, {"role": "assistant", "content": 5}],
                "rejected": [USER, BAD],
            },
            "holds int, not text",
        ),
        (
            {"chosen": [USER, SYSTEM, GOOD], "rejected": [USER, BAD]},
            "a system message is not the first message",
        ),
        ({"chosen": [], "rejected": []}, "`chosen`"),
        (
            {"prompt": [SYSTEM], "chosen": [GOOD], "rejected": [BAD]},
            "answers a Human one",
        ),
    ],
)
def test_a_pair_in_no_known_form_says_what_is_wrong(row, message):
    with pytest.raises(ValueError, match=message):
        hh_rlhf.pair(row, ORIGIN)


@pytest.mark.parametrize("value", [3, 2.5, None, "", float("nan")])
def test_an_optional_text_may_be_a_number_or_nothing(value):
    seed = dolly.seed({"instruction": "Q", "category": value, "context": value}, ORIGIN)
    assert seed.category == ("" if value != value or not value else str(value))


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}])
def test_what_is_no_text_is_refused_in_an_optional_field_too(value):
    with pytest.raises(ValueError, match="`category` holds"):
        dolly.seed({"instruction": "Q", "category": value}, ORIGIN)
