import pytest

from bezoar_ray.data.schema import Sample, normalize
from bezoar_ray.filter.gates import find_gate


def sample(**fields) -> Sample:
    good = {
        "instruction": "Name a fruit.",
        "response": "An apple.",
        "finish_reason": "stop",
    }
    return Sample(id="1", scheme="lamini", operation="example_guided", **good | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response": "The shop said sorry, and I am glad of it."},
        {"response": "She is as an artist sees her."},
        {
            "instruction": "Explain what a prompt is.",
            "response": "A prompt is given to a model.",
        },
        {"response": "1 < 2 and <b>bold</b>"},
    ],
)
def test_a_good_row_goes_on(fields):
    assert find_gate(sample(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"response": " \n"}, "empty"),
        ({"instruction": ""}, "empty"),
        ({"finish_reason": "length"}, "truncated"),
        ({"response": "I'm sorry, but no."}, "refusal"),
        ({"response": "Sorry, I do not know that."}, "refusal"),
        ({"response": "As an AI language model, I have no taste."}, "refusal"),
        ({"response": "I cannot help with that."}, "refusal"),
        ({"response": "<example>Name a tree.</example>"}, "scaffolding"),
        ({"instruction": "#Rewritten Prompt#: Name a fruit."}, "scaffolding"),
        ({"response": "An apple.\n### Instruction:\nName a tree."}, "scaffolding"),
        ({"response": "An apple.<|endoftext|>"}, "scaffolding"),
        ({"response": "An apple.<|end_of_text|>"}, "scaffolding"),
        ({"response": "<|channel|>final<|message|>An apple."}, "scaffolding"),
        ({"response": "An apple.<end_of_turn>"}, "scaffolding"),
        ({"response": "An apple.<｜end▁of▁sentence｜>"}, "scaffolding"),
        ({"response": "<<SYS>>Be kind.<</SYS>> An apple."}, "scaffolding"),
        ({"response": "An apple.</s>"}, "scaffolding"),
        ({"response": "<s> An apple."}, "scaffolding"),
        ({"response": "The old price is struck out: <s>5 dollars</s>"}, None),
        ({"response": "<s>5 dollars</s> is how HTML strikes a price out."}, None),
        (
            {"response": "HAMLET [think] To be. He wraps thoughts in <think> tags."},
            None,
        ),
        ({"response": "In Elixir, `a |> b` pipes; in Elm, `f <| x` applies."}, None),
        ({"response": "name a  FRUIT"}, "copy"),
        ({"input": "red", "response": "Name a fruit.\n\nInput:\nred"}, "copy"),
    ],
)
def test_a_bad_row_is_named_after_its_gate(fields, name):
    assert find_gate(sample(**fields)) == name


def test_signs_make_a_difference_and_case_does_not():
    assert normalize("What is  3 + 4?") == normalize("what is 3 + 4")
    assert normalize("3 + 4") != normalize("3 - 4")


@pytest.mark.parametrize(
    ("response", "name"),
    [
        ("Use AKIAIOSFODNN7EXAMPLE to log in.", "secrets"),
        ("Like so:\n-----BEGIN RSA PRIVATE KEY-----\nMIIE", "secrets"),
        ("Clone https://me:hunter2@example.com/repository.", "secrets"),
        ("Write to jane.doe@example.com.", "personal_data"),
        ("Call (415) 555-2671 before noon.", "personal_data"),
        ("Her number is 123-45-6789.", "personal_data"),
        (
            "My password is a secret, and 4539578763621486 + 100200300 is a large sum.",
            None,
        ),
        ("In 1984 it was 3.14159265358979, at 192 days.", None),
    ],
)
def test_gates_that_a_recipe_adds(response, name):
    row = sample(response=response)
    assert find_gate(row) is None
    assert find_gate(row, ["secrets", "personal_data"]) == name
