"""A run gets the embedded judge at an address; the recipe that is kept does not change."""

import json
import urllib.request

from bezoar_ray.recipe import load_recipe
from bezoar_ray.runs.manifest import fingerprint
from bezoar_ray.stages import STAGES
from bezoar_ray.tiny import resolve
from bezoar_ray.tiny.truth import truth

ELSEWHERE = "http://judge.example/v1"


def test_both_uses_of_the_judge_get_an_endpoint_that_ends_with_the_block():
    recipe = load_recipe("tiny")
    with resolve(recipe, "127.0.0.1") as resolved:
        url = resolved.recipe.judges[0].base_url
        assert resolved.recipe.mt_bench_judges[0].base_url == url
        with urllib.request.urlopen(f"{url}/models") as reply:
            assert json.load(reply)["data"][0]["id"] == "tiny-judge"
        assert resolved.truth is truth
    assert recipe.judges[0].base_url is None
    try:
        urllib.request.urlopen(f"{url}/models")
    except OSError:
        pass
    else:
        raise AssertionError("the judge still answers")


def test_names_and_fingerprints_are_those_of_the_recipe():
    recipe = load_recipe("tiny")
    with resolve(recipe, "127.0.0.1") as resolved:
        for stage in STAGES:
            assert fingerprint(resolved.recipe, stage) == fingerprint(recipe, stage)
        assert resolved.recipe.base.model == "tiny-base"
        assert resolved.recipe.seeds.dolly[0].source == "tiny"


def test_a_judge_at_an_address_of_the_users_keeps_it_and_its_truth():
    overrides = [f"judges.0.base_url={ELSEWHERE}", "evaluate.mt_bench=null"]
    recipe = load_recipe("tiny", overrides)
    with resolve(recipe, "127.0.0.1") as resolved:
        assert resolved.recipe == recipe
        assert resolved.truth is truth


def test_of_rows_that_another_judge_rates_no_truth_is_known():
    recipe = load_recipe("openbezoar-3b")
    with resolve(recipe, "127.0.0.1") as resolved:
        assert resolved.recipe == recipe
        assert resolved.truth is None
