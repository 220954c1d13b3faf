"""tiny-judge over real HTTP with the OpenAI client, asked with the prompts that the filter and MT-Bench send."""

import random
import urllib.error
import urllib.request

import openai
import pytest

from bezoar_ray.data.schema import Sample
from bezoar_ray.evaluate.mt_bench.judge_prompts import (
    compare,
    grade,
    read_grade,
    read_verdict,
)
from bezoar_ray.filter.rating_prompt import rating_messages, read_rating
from bezoar_ray.tiny import draws, judge, lessons
from bezoar_ray.tiny.grading import grade as judged
from bezoar_ray.tiny.truth import truth


@pytest.fixture(scope="module")
def url():
    with judge.running() as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def _ask(client, messages):
    reply = client.chat.completions.create(
        model="tiny-judge", messages=messages, temperature=0
    )
    assert reply.model == "tiny-judge" and reply.usage.total_tokens > 0
    return reply.choices[0].message.content


def _rating(client, instruction, response):
    sample = Sample(
        id="0",
        scheme="lamini",
        operation="x",
        instruction=instruction,
        response=response,
    )
    return read_rating(_ask(client, rating_messages(sample, "Be right.")))


def test_right_rows_rate_high_and_wrong_ones_low(client):
    assert _rating(client, "What is 3 + 4?", "3 + 4 = 7.")[0] == 5
    assert _rating(client, "What is 3 + 4?", "3 + 4 = 8.")[0] < 2
    assert (
        _rating(
            client, "Which item comes last: cup, hat, rope?", "The last item is cup."
        )[0]
        < 2
    )
    assert (
        _rating(
            client,
            "What is 3 + 4?\nDo the same for this table:\n| 1 | 1 |",
            "3 + 4 = 7.",
        )[0]
        == 3
    )


def test_answers_of_both_turns_are_graded(client):
    questions, references = (
        ["What is 3 + 4?", "What is 9 - 2?"],
        ["3 + 4 = 7.", "9 - 2 = 7."],
    )
    assert (
        read_grade(_ask(client, grade(questions[:1], ["3 + 4 = 7."], references[:1])))
        == 10
    )
    assert (
        read_grade(
            _ask(client, grade(questions, ["3 + 4 = 7.", "9 - 2 = 3."], references))
        )
        == 1
    )


def test_the_better_of_two_answers_wins_in_both_orders(client):
    questions, references = (
        ["What is 3 + 4?", "What is 9 - 2?"],
        ["3 + 4 = 7.", "9 - 2 = 7."],
    )
    right, wrong = ["3 + 4 = 9.", "9 - 2 = 7."], ["3 + 4 = 7.", "9 - 2 = 3."]
    assert (
        read_verdict(_ask(client, compare(questions, right, wrong, references)))
        == "first"
    )
    assert (
        read_verdict(_ask(client, compare(questions, wrong, right, references)))
        == "second"
    )
    assert (
        read_verdict(_ask(client, compare(questions, right, right, references)))
        == "tie"
    )


def test_text_from_elsewhere_is_graded_by_its_surface_only(client):
    asked = "What type of persimmon can be eaten raw?"
    on_topic, reason = _rating(
        client, asked, "The hachiya persimmon can be eaten raw once it is soft."
    )
    copied, _ = _rating(client, asked, asked)
    assert "outside-world" in reason and on_topic > copied


def test_other_models_and_broken_requests_get_openai_errors(client, url):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(
            model="gpt-4", messages=[{"role": "user", "content": "x"}]
        )
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny-judge", messages="nonsense")
    with pytest.raises(urllib.error.HTTPError) as broken:
        urllib.request.urlopen(
            urllib.request.Request(f"{url}/chat/completions", data=b"{", method="POST")
        )
    assert broken.value.code == 400
    assert [model.id for model in client.models.list()] == ["tiny-judge"]


def test_the_judge_is_good_but_not_the_truth_itself():
    rng, counts = (
        random.Random(0),
        {(a, b): 0 for a in (True, False) for b in (True, False)},
    )
    for _ in range(3000):
        asked = draws.instruction(rng)
        told = lessons.reply(rng, asked.request)
        counts[truth(asked.text, told), judged(asked.text, told).share >= 0.75] += 1
    precision = counts[True, True] / (counts[True, True] + counts[False, True])
    recall = counts[True, True] / (counts[True, True] + counts[True, False])
    assert 0.95 < precision < 1 and 0.95 < recall < 1
