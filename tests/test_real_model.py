"""SmolLM2-135M-Instruct goes through the recipe `smol` with real dolly, FLAN and HH-RLHF rows."""

import json
import urllib.request
from collections.abc import Iterator
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.data.schema import Sample
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.recipe import Recipe, load_recipe
from bezoar_ray.schemes import SCHEMES
from bezoar_ray.serve.app import running
from bezoar_ray.store import Store
from bezoar_ray.train import model_loading
from bezoar_ray.train.encoding import encode
from bezoar_ray.train.heldout import mean_log_probabilities
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.tokenizer import load_tokenizer
from tests.end_to_end import Command, summary
from tests.evaluate.test_parity import log_probabilities_apart, measured_both_ways

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
TRAINED_ON = 6  # accepted rows of each scheme; the others are held out
FLAT = Layout("flat")


@pytest.fixture(scope="module")
def run_dir(real_data, real_model, tmp_path_factory) -> Path:
    """A run from generate to report: the model is teacher, judge and base."""
    folder = tmp_path_factory.mktemp("smol")
    sets = [
        *(f"{part}.model={real_model}" for part in ("teacher", "judges.0", "base")),
        *(f"{part}.revision=null" for part in ("teacher", "judges.0", "base")),
        f"seeds.dolly=[{{source: {real_data}/dolly/*.jsonl, license: CC-BY-SA-3.0}}]",
        f"seeds.flan=[{{source: {real_data}/flan/*.jsonl, license: Apache-2.0}}]",
        f"seeds.hh_rlhf=[{{source: {real_data}/hh-rlhf/*.jsonl.gz, license: MIT, limit: 60}}]",
        "generate.lamini.calls=6",
        "generate.evol_instruct.seeds=8",
        "generate.orca.mixtures={CoT: {rows: 6}, T0: {rows: 6}}",
        "filter.accept_rating=1",
        f"sft.limit={TRAINED_ON}",
        "hh_sft.limit=16",
        "align.limit=16",
        "evaluate.harness={include_path: tiny, tasks: [{task: tiny_choice, limit: 20}]}",
        "evaluate.heldout_pairs=20",
    ]
    code, output = Command(folder, recipe="smol", sets=sets).wait(2300)
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def recipe(run_dir) -> Recipe:
    return load_recipe(str(run_dir / "recipe.yaml"))


@pytest.fixture(scope="module")
def accepted(run_dir, recipe) -> list[Sample]:
    return [
        row
        for scheme in SCHEMES
        for row in read_samples(Store(run_dir), scheme, "accepted")
    ]


@pytest.fixture(scope="module")
def endpoint(ray_session, run_dir, recipe) -> Iterator[Endpoint]:
    store = Store(run_dir)
    with running(recipe, store) as base_url:
        yield Endpoint.at(base_url, store)


def test_every_scheme_has_accepted_rows_and_every_stage_ends(run_dir):
    found = summary(run_dir)
    assert {stage["status"] for stage in found["stages"].values()} == {"done"}
    print({scheme: found["data"][scheme] for scheme in SCHEMES})
    assert all(found["data"][scheme]["accepted"] > 0 for scheme in SCHEMES)


def test_an_endpoint_reads_the_tokens_that_training_read(endpoint, recipe, accepted):
    tokenizer = load_tokenizer(recipe)
    for row in accepted[:20]:
        *prompt, answer = row.conversation()
        trained = encode(tokenizer, [*prompt, answer])
        begin = next(
            place for place, label in enumerate(trained["labels"]) if label >= 0
        )
        body = {
            "model": "sft",
            "messages": prompt,
            "max_tokens": 1,
            "return_token_ids": True,
        }
        assert (
            asked(f"{endpoint.base_url}/chat/completions", body)["prompt_token_ids"]
            == trained["input_ids"][:begin]
        )


def test_sft_lowers_the_perplexity_of_answers_that_it_was_not_trained_on(
    run_dir, recipe, accepted
):
    tokenizer, store = load_tokenizer(recipe), Store(run_dir)
    trained = {
        id
        for file in run_dir.glob("train/data/sft-*.arrow")
        for id in Dataset.from_file(str(file))["id"]
    }
    scored = [
        encode(tokenizer, row.conversation())
        for row in accepted
        if row.id not in trained
    ]
    assert len(trained) > 6 and len(scored) > 6
    base, sft = (
        fmean(
            mean_log_probabilities(
                model_loading.load(recipe.base, folder), scored, FLAT
            )
        )
        for folder in (None, str(store.path("checkpoints/sft/merged")))
    )
    print(
        f"\nperplexity of {len(scored)} held-out answers: base {exp(-base):.2f}, sft {exp(-sft):.2f}"
    )
    assert sft > base


def test_the_joined_adapters_are_the_merged_chain_within_bfloat16s_rounding(
    run_dir, recipe, accepted
):
    tokenizer, store = load_tokenizer(recipe), Store(run_dir)
    scored = [encode(tokenizer, row.conversation()) for row in accepted]
    for name in ("sft", "hh-sft", "dpo"):
        merged = model_loading.load(
            recipe.base, str(store.path(f"checkpoints/{name}/merged"))
        )
        joined = model_loading.with_adapter(
            model_loading.load(recipe.base),
            str(store.path(f"checkpoints/{name}/joined")),
        )
        both = [
            mean_log_probabilities(model, scored, FLAT) for model in (merged, joined)
        ]
        apart = [abs(a - b) for a, b in zip(*both, strict=True)]
        print(f"\n{name}: mean log-probability {max(apart):.4f} apart at most")
        assert max(apart) < 0.05


def test_lm_eval_finds_the_same_through_the_endpoint_and_through_transformers(
    endpoint, recipe, run_dir, tmp_path
):
    AutoModelForCausalLM.from_pretrained(recipe.base.model).save_pretrained(tmp_path)
    load_tokenizer(recipe).save_pretrained(tmp_path)
    both = measured_both_ways(endpoint, Store(run_dir), "base", str(tmp_path))
    apart = log_probabilities_apart(both)
    print(
        f"\nlog-probabilities differ by {max(apart):.1e} at most, over {len(apart)} choices"
    )
    assert max(apart) < 1e-3
    ours, theirs = (found["results"]["tiny_choice"]["acc,none"] for found in both)
    assert ours == theirs


def asked(url: str, body: dict[str, Any]) -> Any:
    """An endpoint's answer to a request."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)
