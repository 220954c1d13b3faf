"""The checkpoints' log-probabilities of answers, through the real endpoint."""

import asyncio
from dataclasses import replace

import pytest

from bezoar_ray.evaluate.reward_bench.items import load_items
from bezoar_ray.evaluate.reward_bench.likelihood import answer_log_probabilities
from bezoar_ray.evaluate.reward_bench.tokenized_items import TokenizedAnswer, tokenize
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.recipe import SourceSection
from tests.evaluate.measure import measure
from tests.evaluate.reward_bench.files import write_version_1, write_version_2
from tests.family import family_recipe, log_probabilities

pytestmark = pytest.mark.slow
NAMES = ("base", "sft", "dpo")


@pytest.fixture(scope="module")
def answers(family, tmp_path_factory) -> list[TokenizedAnswer]:
    """The ten answers of the small file of version 1."""
    from transformers import AutoTokenizer

    path = tmp_path_factory.mktemp("bench") / "one.jsonl"
    write_version_1(path)
    items = load_items(SourceSection(source=str(path)), "one")
    folder = family.store.path("checkpoints/base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [answer for item in tokenize(items, tokenizer) for answer in item]


@pytest.fixture(scope="module")
def expected(family, answers) -> dict[str, list[float]]:
    """The sums of each checkpoint, by transformers."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    sums = {}
    for name in NAMES:
        model = AutoModelForCausalLM.from_pretrained(family.model, dtype=torch.float32)
        if name != "base":
            folder = family.store.path(f"checkpoints/{name}/joined")
            model = PeftModel.from_pretrained(model, folder)
        model.eval()
        sums[name] = []
        for answer in answers:
            # The first token has no log-probability.
            begin, end = answer.answer.start - 1, answer.answer.stop - 1
            sums[name].append(sum(log_probabilities(model, answer.ids)[begin:end]))
    return sums


def test_the_sums_are_those_of_the_answers_tokens_under_each_checkpoint(
    family, answers, expected
):
    endpoint = Endpoint.at(family.base_url, family.store)

    async def ask_all() -> list[list[float | None]]:
        asked = [answer_log_probabilities(endpoint, name, answers) for name in NAMES]
        return await asyncio.gather(*asked)

    for name, sums in zip(NAMES, asyncio.run(ask_all()), strict=True):
        assert sums == pytest.approx(expected[name], abs=5e-3)
    assert expected["base"][0] != pytest.approx(expected["sft"][0], abs=0.1)


def test_a_conversation_that_fills_the_context_is_left_out(family, answers):
    lengths = [len(answer.ids) for answer in answers]
    context = sorted(lengths)[-2]  # two of the answers are as long, or longer
    endpoint = Endpoint.at(family.base_url, family.store)
    small = replace(endpoint, context=context)
    sums = asyncio.run(answer_log_probabilities(small, "base", answers))
    assert [value is None for value in sums] == [
        length >= context for length in lengths
    ]


def test_the_stage_has_the_implicit_rewards_of_checkpoints_with_their_reference(
    family, expected, tmp_path
):
    """The family has no hh-sft, so the reference of dpo is missing."""
    write_version_1(tmp_path / "one.jsonl")
    write_version_2(tmp_path / "two.jsonl")
    recipe = family_recipe(
        "evaluate.harness=null",
        "evaluate.mt_bench=null",
        f"evaluate.reward_bench.one={tmp_path}/one.jsonl",
        f"evaluate.reward_bench.two={tmp_path}/two.jsonl",
    )
    result = measure(recipe, family.store, family.base_url, "reward bench")
    summary = result.summary["eval"]["reward_bench"]
    assert list(summary) == ["implicit"]
    assert list(summary["implicit"]) == ["sft"]
    right = 0
    for index in range(0, 10, 2):
        chosen, rejected = (
            expected["sft"][place] - expected["base"][place]
            for place in (index, index + 1)
        )
        right += chosen > rejected
    subsets = summary["implicit"]["sft"]["one"]["subsets"].values()
    assert sum(subset["score"] for subset in subsets) == right
    assert summary["implicit"]["sft"]["two"]["left_out"] == 0
    assert result.files == [f"eval/reward_bench/{name}.json" for name in NAMES]
