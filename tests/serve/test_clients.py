"""The endpoint as real clients find it: the openai package, curl, and requests that are wrong."""

import asyncio
import json
import subprocess
import urllib.error
import urllib.request

import openai
import pytest

from bezoar_ray.train.encoding import IGNORED, encode
from bezoar_ray.train.tokenizer import load_tokenizer
from tests.family import family_recipe

pytestmark = pytest.mark.slow
ASKED = {
    "messages": [{"role": "user", "content": "What is 2 plus 3?"}],
    "max_tokens": 12,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def client(family):
    with openai.OpenAI(
        base_url=family.base_url, api_key="none", max_retries=0
    ) as found:
        yield found


def test_the_models_are_listed_with_the_context_they_take(client):
    models = {model.id: model for model in client.models.list()}
    assert (
        list(models) == ["base", "sft", "dpo"] and models["base"].max_model_len == 2048
    )


def test_an_answer_is_the_same_whole_streamed_and_asked_for_asynchronously(
    client, family
):
    asked = {"model": "sft", "extra_body": {"min_tokens": 12}, **ASKED}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = client.chat.completions.create(stream=True, **asked)
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == whole and len(parts) > 3

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=family.base_url, api_key="none"
        ) as other:
            calls = [other.chat.completions.create(**asked) for _ in range(8)]
            return [
                reply.choices[0].message.content
                for reply in await asyncio.gather(*calls)
            ]

    assert set(asyncio.run(all_at_once())) == {whole}


ASKED_FOR = [
    [{"role": "user", "content": "What is 2 plus 3?"}],
    [
        {"role": "system", "content": "Answer  briefly."},
        {"role": "user", "content": " Ünïcode 🙂,\n\ttabs "},
    ],
    [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "### Response:\n</s> "},
    ],
]


@pytest.mark.parametrize("model", ["base", "sft"])
@pytest.mark.parametrize(
    "messages", ASKED_FOR, ids=["one turn", "a system message", "several turns"]
)
def test_an_engine_sees_the_tokens_that_training_saw(family, messages, model):
    tokenizer = load_tokenizer(family_recipe())
    trained = encode(tokenizer, [*messages, {"role": "assistant", "content": "Five."}])
    begins = max(
        n + 1 for n, label in enumerate(trained["labels"][:-3]) if label == IGNORED
    )
    body = json.dumps(
        {"model": model, "messages": messages, "add_generation_prompt": True}
    ).encode()
    url = f"{family.base_url.removesuffix('/v1')}/tokenize"
    asked = urllib.request.Request(
        url, body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert json.load(answer)["tokens"] == trained["input_ids"][:begins]


def test_curl_gets_an_answer(family):
    body = json.dumps({"model": "dpo", **ASKED})
    command = [
        "curl",
        "-sS",
        f"{family.base_url}/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["model"] == "dpo"


def refused(family, body: bytes) -> tuple[int, dict]:
    """Status and error of a request that cannot be answered."""
    url, kind = (
        f"{family.base_url}/chat/completions",
        {"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(
            urllib.request.Request(url, body, headers=kind), timeout=60
        )
    return error.value.code, json.load(error.value)["error"]


def test_wrong_requests_get_openais_errors_and_do_no_harm(family, client):
    status, error = refused(family, json.dumps({"model": "gpt-4", **ASKED}).encode())
    assert status == 404 and "gpt-4" in error["message"]
    long = [{"role": "user", "content": "word " * 5000}]
    status, error = refused(
        family, json.dumps({"model": "sft", "messages": long}).encode()
    )
    assert status == 400 and "2048" in error["message"]
    for broken in (
        b"{",
        b"[]",
        json.dumps({"model": "sft", "messages": "hello"}).encode(),
    ):
        status, error = refused(family, broken)
        assert status in (400, 422) and error["message"]
    status, error = refused(family, b" " * (4 * 2**20 + 1))
    assert status == 413 and "serve.max_request_bytes" in error["message"]
    assert client.chat.completions.create(model="sft", **ASKED).choices[
        0
    ].finish_reason in ("stop", "length")


def test_prometheus_finds_the_engines_figures(family, client):
    import ray

    client.chat.completions.create(model="sft", **ASKED)
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    async def found() -> str:
        for _ in range(60):
            text = urllib.request.urlopen(address, timeout=10).read().decode()
            if (
                "ray_vllm_generation_tokens_total" in text
                and "ray_serve_num_http_requests" in text
            ):
                return text
            await asyncio.sleep(0.5)
        return text

    lines = asyncio.run(found()).splitlines()
    tokens = [
        line for line in lines if line.startswith("ray_vllm_generation_tokens_total")
    ]
    assert (
        tokens and float(tokens[0].rsplit(" ", 1)[1]) > 0 and "ReplicaId" in tokens[0]
    )
    assert any(line.startswith("ray_serve_num_http_requests") for line in lines)
