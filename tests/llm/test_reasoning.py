"""The answer in a text that holds reasoning, too."""

import orjson
import pytest

from bezoar_ray.llm.reasoning import without_reasoning
from tests.llm.test_ledger import ask, talker


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>2+2</think>four", "four"),
        ("2+2\n</think>\n\nfour", "four"),  # the template has begun it
        ("<think>2+2", ""),  # cut off
        ("<think>\n\n</think>\n\nfour", "four"),
        ("</think>", ""),
        ("<thinking>2+2</thinking> four", "four"),
        ("<reasoning>2+2</reasoning>four", "four"),
        ("[THINK]2+2[/THINK]four", "four"),
        ("◁think▷2+2◁/think▷four", "four"),
        (
            "<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>four<|return|>",
            "four",
        ),
        ("<|channel|>analysis<|message|>2+2", ""),
        ("four", "four"),
        ("  four\n", "  four\n"),
        (
            "<think>2+2</think>Close a block with </think>.",
            "Close a block with </think>.",
        ),
        ("<think>a</think><think>b</think>four", "four"),
        ("<|channel|>final <|constrain|>json<|message|>{}", "{}"),
        *(
            (text, text)
            for text in (
                "In XML, <think> is a tag like any other.",
                "<note><thought>Buy milk</thought></note>",
                "Put the steps in <reasoning> and close with </reasoning>, then answer.",
                "Use [think] and [/think] marks.",
                "Close the block with </thinking>. Then go on.",
                "<reasoning> is the tag that opens it.",
                '{"reason": "It leaves a </reasoning> tag in.", "rating": 2}',
            )
        ),
        ("", ""),
    ],
)
def test_the_answer_is_what_comes_after_the_reasoning(text, answer):
    assert without_reasoning(text) == answer


def test_the_ledger_keeps_the_reasoning_and_a_row_gets_the_answer(tmp_path, scripted):
    model = scripted(lambda messages: "<think>2+2</think>four")
    assert ask(talker(tmp_path, model)).text == "four"
    assert ask(talker(tmp_path, model, session="two")).text == "four"  # from the ledger
    (segment, *_) = sorted((tmp_path / "ledger/judge").glob("*.jsonl"))
    kept = [
        line["answer"]["text"]
        for line in map(orjson.loads, segment.read_text().splitlines())
        if "answer" in line
    ]
    assert kept == ["<think>2+2</think>four"]
