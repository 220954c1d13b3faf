"""The family on one endpoint: real vLLM, real Ray Serve, real HTTP."""

import concurrent.futures
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import load_recipe
from bezoar_ray.serve.app import running, serve_forever
from bezoar_ray.store import Store
from bezoar_ray.train.encoding import IGNORED, encode
from tests.family import family_recipe, log_probabilities, write_family, write_merged

NAMES = ["base", "sft", "dpo"]
PROMPTS = [[5 + (7 * row + 3 * i) % 900 for i in range(12 + row)] for row in range(6)]


def post(base_url: str, path: str, raw: bool = False, **body) -> dict | str:
    request = urllib.request.Request(
        base_url + path,
        json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read().decode() if raw else json.load(answer)


def greedy(base_url: str, name: str) -> list[str]:
    """Greedy answers to fifty prompts."""
    prompts = [
        [5 + (7 * row + 3 * i) % 900 for i in range(6 + row % 9)] for row in range(50)
    ]
    body = {"model": name, "prompt": prompts, "max_tokens": 12, "temperature": 0}
    choices = sorted(
        post(base_url, "/completions", **body)["choices"],
        key=lambda choice: choice["index"],
    )
    return [choice["text"] for choice in choices]


def echoed(base_url: str, name: str) -> list[list[float]]:
    """Log-probabilities of the prompts' own tokens, as lm-eval asks for them."""
    body = {
        "model": name,
        "prompt": PROMPTS,
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
        "temperature": 0,
    }
    choices = sorted(
        post(base_url, "/completions", **body)["choices"],
        key=lambda choice: choice["index"],
    )
    return [choice["logprobs"]["token_logprobs"][1:-1] for choice in choices]


@pytest.mark.slow
def test_a_cluster_that_serves_something_else_is_left_as_it_is(family, tmp_path):
    with pytest.raises(RecipeError, match="Serve hosts base-[0-9a-f]{8} already"):
        running(family_recipe(), Store(tmp_path)).__enter__()
    assert post(
        family.base_url, "/completions", model="base", prompt=[1, 2], max_tokens=1
    )["choices"]


@pytest.mark.slow
def test_every_checkpoint_answers_chat_in_the_recipes_template(family):
    asked = {
        "messages": [{"role": "user", "content": "What is 2 plus 3?"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    replies = {
        name: post(family.base_url, "/chat/completions", model=name, **asked)
        for name in NAMES
    }
    sizes = {reply["usage"]["prompt_tokens"] for reply in replies.values()}
    assert len(sizes) == 1 and sizes.pop() > 20
    texts = {
        name: reply["choices"][0]["message"]["content"]
        for name, reply in replies.items()
    }
    assert texts["base"] not in (texts["sft"], texts["dpo"])


@pytest.mark.slow
def test_the_engine_sees_the_ids_of_training_whatever_control_tokens_a_text_spells(
    family,
):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(family.store.path("checkpoints/base"))
    for text in (
        "plain",
        "</s>",
        "<s>old price</s>",
        "a <pad></s></s>b",
        "café </s>日本語",
        "\n</s>\n",
    ):
        asked = [
            {"role": role, "content": text}
            for role in ("system", "user", "assistant", "user")
        ]
        row = encode(tokenizer, [*asked, {"role": "assistant", "content": text}])
        prompt = row["input_ids"][
            : max(i for i, label in enumerate(row["labels"]) if label == IGNORED) + 1
        ]
        body = {
            "model": "sft",
            "messages": asked,
            "max_tokens": 24,
            "temperature": 0,
            "return_token_ids": True,
        }
        reply = post(family.base_url, "/chat/completions", **body)
        assert reply["prompt_token_ids"] == prompt and reply["usage"][
            "prompt_tokens"
        ] == len(prompt)
        (choice,) = reply["choices"]
        ended = choice["token_ids"][-1] == tokenizer.eos_token_id
        assert ended == (choice["finish_reason"] == "stop")
        assert tokenizer.eos_token_id not in choice["token_ids"][:-1]


@pytest.mark.slow
def test_echoed_log_probabilities_are_each_checkpoints_own_even_in_mixed_batches(
    family,
):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        jobs = [
            (name, pool.submit(echoed, family.base_url, name))
            for _ in range(3)
            for name in NAMES
        ]
        found = [(name, job.result()) for name, job in jobs]
    expected = {}
    for name in NAMES:
        model = AutoModelForCausalLM.from_pretrained(family.model, dtype=torch.float32)
        if name != "base":
            model = PeftModel.from_pretrained(
                model, family.store.path(f"checkpoints/{name}/joined")
            )
        expected[name] = [log_probabilities(model.eval(), prompt) for prompt in PROMPTS]
    for name, rows in found:
        for row, wanted in zip(rows, expected[name], strict=True):
            assert row == pytest.approx(wanted, abs=2e-3)
    assert expected["base"][0] != pytest.approx(expected["sft"][0], abs=0.1)


FAILING = """
import sys
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.serve.app import running
from bezoar_ray.store import Store
from tests.family import family_recipe

with ray_session(), running(family_recipe("serve.engine.max_model_len=999999"), Store(sys.argv[1])):
    pass
"""


@pytest.mark.slow
def test_an_endpoint_that_cannot_start_says_why(tiny_world, tmp_path):
    """In a process of its own: on one Ray there is one endpoint at a time."""
    write_family(Store(tmp_path), tiny_world)
    done = subprocess.run(
        [sys.executable, "-c", FAILING, tmp_path], capture_output=True, text=True
    )
    message = done.stderr[done.stderr.index("BezoarError") :]
    assert (
        "the endpoint did not start" in message
        and "serve.log" in message
        and "999999" in message
    )


BESIDE = """
import json, sys
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.serve.app import running
from bezoar_ray.store import Store
from tests.family import family_recipe
from tests.serve.test_app import greedy, post

with ray_session(), running(family_recipe(), Store(sys.argv[1])) as base_url:
    streamed = post(base_url, "/completions", model="sft", prompt=[[5, 6]], max_tokens=4, stream=True, raw=True)
    print(json.dumps({"sft": greedy(base_url, "sft"), "dpo": greedy(base_url, "dpo"), "streamed": streamed}))
"""


@pytest.mark.slow
def test_a_merged_checkpoint_beside_a_joined_one_says_what_its_joined_equal_says(
    family, tiny_world, tmp_path
):
    write_family(Store(tmp_path), tiny_world)
    write_merged(Store(tmp_path), tiny_world, "sft", Store(tmp_path))
    Store(tmp_path).remove(
        "checkpoints/sft/joined"
    )  # as where a chain cannot be joined
    command = [sys.executable, "-c", BESIDE, tmp_path]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("sft", "dpo"):
        assert (
            found[name] == greedy(family.base_url, name) and len(set(found[name])) > 25
        )
    assert found["streamed"].count("data: ") > 3 and found[
        "streamed"
    ].rstrip().endswith("data: [DONE]")


def test_an_address_that_others_reach_needs_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("BEZOAR_API_KEY", raising=False)
    with pytest.raises(RecipeError, match=r"serve\.host: '0\.0\.0\.0'.*BEZOAR_API_KEY"):
        serve_forever(load_recipe("tiny", ["serve.host=0.0.0.0"]), Store(tmp_path))
