"""A plan's numbers, checked by hand, and again from what a pilot measured."""

import json
import os
import re
import subprocess
import sys

import pytest

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.plan import Assumed, plan, plan_from, render, render_scaling, scaling
from bezoar_ray.plan.memory import training_pass
from bezoar_ray.plan.speeds import SPEEDS, training_speed
from bezoar_ray.plan.steps import billions
from bezoar_ray.recipe import load_recipe, parse_recipe, recipe_names
from bezoar_ray.runtime.gpus import GPUS, find_gpu, kind_of
from bezoar_ray.runtime.model_shapes import Shape, shape_of
from tests import architectures

TREE = {
    "name": "small",
    "teacher": {
        "model": "org/teacher-10b",
        "num_gpus": 1,
        "prices": {"input": 1, "output": 2},
    },
    "judges": [
        {"model": "one", "prices": {"input": 1, "output": 10}},
        {"model": "two"},
    ],
    "base": {"model": "org/base-2b"},
    "seeds": {
        "dolly": [{"source": "dolly.jsonl", "limit": 50}],
        "flan": [{"source": "flan.jsonl", "limit": 100}],
        "hh_rlhf": [{"source": "hh.jsonl", "limit": 300}],
    },
    "generate": {
        "lamini": {"calls": 10, "per_call": 20},
        "evol_instruct": {"seeds": 80, "epochs": 3},
        "orca": {"mixtures": {"CoT": {"rows": 30}, "T0": {"rows": 40}}},
    },
    "hh_sft": {"limit": 150, "gpus_per_worker": 1},
    "evaluate": {
        "harness": {"tasks": [{"task": "a", "limit": 100}]},
        "mt_bench": {"questions": "q.jsonl", "limit": 10},
        "heldout_pairs": 100,
    },
}
RECIPE = parse_recipe(TREE, "test")


def calls(found, what):
    return [step.calls for step in found.steps if step.what == what]


def test_calls_follow_from_the_recipe():
    found = plan(RECIPE)
    assert found.rows == {
        "lamini": 200,
        "evol_instruct": 150,
        "orca": 70,
    }  # only 50 seeds to evolve, 3 epochs
    assert calls(found, "lamini instructions") == [10]
    assert calls(found, "lamini answer") == [200]
    assert [
        calls(found, f"evol_instruct {step}")
        for step in ("rewrite", "comparison", "answer")
    ] == [[150]] * 3
    assert calls(found, "orca answer") == [70]
    assert calls(found, "judge") == [420, 420]  # every row, for each of the two judges
    assert (
        calls(found, "mt_bench answer")
        == calls(found, "mt_bench judge")
        == [10 * 2 * 4]
    )
    assert calls(found, "mt_bench comparison") == [
        10 * 2 * 3 * 2
    ]  # three pairs, in both orders
    assert calls(found, "harness request") == [100 * 3.5 * 4]


def test_own_schemes_and_rows_are_counted(tmp_path):
    own = {"rhymes": {"function": "mine.py:rhymes", "works": 40, "rows_per_work": 3}}
    tree = TREE | {"generate": TREE["generate"] | {"own": own}}
    tree["sft"] = {"data": {"support": {"source": "rows.jsonl", "limit": 500}}}
    tree["filter"] = {"cap": {"lamini": 60}}
    found = plan(parse_recipe(tree, "test"))
    assert found.rows["rhymes"] == 120 and calls(found, "rhymes answer") == [120]
    assert calls(found, "judge") == [540, 540]
    sft = next(step for step in found.steps if step.stage == "sft")
    assert sft.tokens_in == pytest.approx(
        60 * 260 + 150 * 0.68 * 500 + 70 * 0.17 * 550 + (120 * 0.5 + 500) * 450
    )


def test_the_most_that_it_can_cost_and_its_limit_are_said():
    found = plan(RECIPE)
    teacher = (
        10 * 700 + (200 + 150 * 3 + 70) * 512
    )  # a step that needs more than max_tokens takes it
    judge = (420 + 80 + 120) * 2048  # rows, turns of four checkpoints, comparisons
    into = sum(
        step.tokens_in
        for step in found.steps
        if step.model in ("org/teacher-10b", "one")
    )
    most = (into + teacher * 2 + judge * 10) / 1e6
    assert found.total("usd_most") == pytest.approx(most) and most > found.total("usd")
    said = render(plan(parse_recipe(TREE | {"budget_usd": 5}, "test")))
    assert (
        f"At most {most:,.2f} API dollars" in said
        and "budget_usd stops the run at 5.00" in said
    )
    assert "budget_usd sets no limit" in render(found)


def test_whether_the_result_may_be_used_is_said_before_the_bill():
    said = render(plan(load_recipe("openbezoar-3b")))
    assert (
        "May the result be used commercially? With obligations:" in said
        and "CC-BY-SA-3.0" in said
    )


def test_a_gpus_price_can_be_ones_own():
    ours, cheap = (
        scaling(load_recipe("openbezoar-3b"), kind) for kind in ("A100", "A100=0.9")
    )
    assert cheap.usd(8) - cheap.api_usd == pytest.approx(
        (ours.usd(8) - ours.api_usd) / 2
    )
    for price in ("cheap", "-5", "nan", ""):
        with pytest.raises(RecipeError, match=f"--cluster A100={price}: not a price"):
            scaling(load_recipe("openbezoar-3b"), f"A100={price}")


def test_published_models_are_judged_too(tmp_path):
    answer = {"question_id": 81, "choices": [{"turns": ["a", "b"]}]}
    for name in ("gpt-4", "llama"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(answer | {"model_id": name}))
    bench = TREE["evaluate"]["mt_bench"] | {
        "answers": [f"{tmp_path}/*.jsonl", f"{tmp_path}/not-yet.jsonl"]
    }
    found = plan(
        parse_recipe(
            TREE | {"evaluate": TREE["evaluate"] | {"mt_bench": bench}}, "test"
        )
    )
    assert calls(found, "mt_bench answer") == [10 * 2 * 4] and calls(
        found, "mt_bench judge"
    ) == [10 * 2 * 6]


def test_candidates_teachers_and_batches_are_counted():
    several = TREE | {"generate": TREE["generate"] | {"candidates": 3}}
    several["teachers"] = [several.pop("teacher") | {"weight": 3}, {"model": "other"}]
    several["judges"] = [
        TREE["judges"][0] | {"base_url": "http://x/v1", "mode": "batch"}
    ]
    found = plan(parse_recipe(several, "test"))
    assert calls(found, "orca answer") == [70 * 3 * 0.75, 70 * 3 * 0.25]
    assert calls(found, "lamini instructions") == [7.5, 2.5]
    assert calls(found, "judge") == [420 * 3]
    judge = next(step for step in found.steps if step.what == "judge")
    assert judge.usd == pytest.approx(0.5 * 3 * (420 * 800 * 1 + 420 * 80 * 10) / 1e6)


def test_dollars_are_tokens_times_prices():
    found = plan(RECIPE)
    judge = next(
        step for step in found.steps if step.model == "one" and step.what == "judge"
    )
    assert (judge.tokens_in, judge.tokens_out) == (420 * 800, 420 * 80)
    assert judge.usd == pytest.approx((420 * 800 * 1 + 420 * 80 * 10) / 1e6)
    assert found.total("usd") == pytest.approx(sum(step.usd for step in found.steps))


def test_gpu_hours_follow_from_tokens_and_only_where_there_is_a_gpu():
    found = {(step.stage, step.what): step for step in plan(RECIPE).steps}
    answers = found["generate", "lamini answer"]
    assert answers.gpu_hours == pytest.approx(
        10 * (200 * 60 / 120_000 + 200 * 200 / 30_000) / 3600
    )
    hh_sft = found["hh-sft", "150 conversations"]
    layers = shape_of("org/base-2b", 2.0).layers
    passes = (
        150 / 16
    )  # a step's 16 rows are one pass, too small to take longer than its layers take to start
    assert hh_sft.gpu_hours == pytest.approx(passes * 0.0091 * layers / 3600)
    assert (
        found["align", "200 pairs"].gpu_hours == 0
    )  # 300 rows less 100 held out; no GPU asked for


def test_training_tokens_follow_from_the_yields():
    sft = next(step for step in plan(RECIPE).steps if step.stage == "sft")
    expected = 200 * 0.5 * 260 + 150 * 0.68 * 500 + 70 * 0.17 * 550
    assert sft.tokens_in == pytest.approx(expected)


def test_a_pilot_replaces_yields_and_tokens(tmp_path):
    pilot = {
        "data": {
            "lamini": {"generated": 40, "accepted": 30},
            "evol_instruct": {"generated": 0, "accepted": 0},
        },
        "calls": {
            "teacher": {
                "sent": 42,
                "tokens_in": 2 * (2 * 150 + 40 * 60),
                "tokens_out": 3 * (2 * 700 + 40 * 200),
            },
            "judge": {"sent": 60, "tokens_in": 60_000, "tokens_out": 3_000},
        },
    }
    (tmp_path / "summary.json").write_text(json.dumps(pilot))
    found = plan_from(RECIPE, tmp_path).assumed
    assert found.accepted == {"lamini": 0.75, "evol_instruct": 0.68, "orca": 0.17}
    assert found.judged == 60 / (40 * 2)
    assert (found.call["judge"].into, found.call["judge"].out) == (1000, 50)
    assert found.call["orca answer"].into == pytest.approx(
        2 * 300
    )  # twice what was assumed, as the pilot's
    assert found.call["lamini answer"].out == pytest.approx(3 * 200)
    assert found.call["harness request"] == Assumed().call["harness request"]
    assert str(tmp_path) in render(plan_from(RECIPE, tmp_path))


@pytest.mark.parametrize("candidates", [1, 4])
def test_what_was_assumed_comes_back_from_a_run_that_did_so(candidates, tmp_path):
    """All candidates of an instruction are counted as generated, and one of them at most as accepted."""
    recipe = load_recipe("modern", [f"generate.candidates={candidates}"])
    planned = plan(recipe)
    of_teacher = [step for step in planned.steps if step.stage == "generate"]
    tokens_in, tokens_out = (
        sum(getattr(step, name) for step in of_teacher)
        for name in ("tokens_in", "tokens_out")
    )
    data = {
        scheme: {
            "generated": rows * candidates,
            "accepted": rows * planned.assumed.accepted[scheme],
        }
        for scheme, rows in planned.rows.items()
    }
    teacher = {
        "sent": sum(step.calls for step in of_teacher),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
    }
    judge = next(step for step in planned.steps if step.what == "judge")
    judged = {
        "sent": judge.calls,
        "tokens_in": judge.tokens_in,
        "tokens_out": judge.tokens_out,
    }
    (tmp_path / "summary.json").write_text(
        json.dumps({"data": data, "calls": {"teacher": teacher, "judge": judged}})
    )
    again = plan_from(recipe, tmp_path)
    for before, after in zip(planned.steps, again.steps, strict=True):
        assert (after.what, after.tokens_in) == (
            before.what,
            pytest.approx(before.tokens_in),
        )
        assert after.gpu_hours == pytest.approx(before.gpu_hours)


def test_from_a_folder_without_a_run_says_so(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"--from .*no summary\.json with rows in it"):
        plan_from(RECIPE, tmp_path)
    (tmp_path / "summary.json").write_text('{"data": ')
    with pytest.raises(BezoarError, match="is not whole JSON"):
        plan_from(RECIPE, tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(RecipeError, match=r"--from .*summary\.json"):
        plan_from(RECIPE, tmp_path)


def test_the_text_holds_every_step_and_names_the_assumptions():
    text = render(plan(RECIPE))
    assert "Rows to generate, at most: lamini 200, evol_instruct 150, orca 70" in text
    assert "none of them measured" in text
    assert "vLLM writes 30,000" in text
    for step in plan(RECIPE).steps:
        assert step.what in text


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_has_a_plan(name):
    found = plan(load_recipe(name))
    assert found.total("calls") > 0
    if name == "openbezoar-3b":
        assert found.rows == {"lamini": 1600, "evol_instruct": 2304, "orca": 5507}
        assert found.total("usd") > 10
        assert found.total("gpu_hours") > 3
    if name == "tiny":
        assert found.total("gpu_hours") == found.total("usd") == 0


@pytest.mark.parametrize(
    ("name", "active", "expected"),
    [
        ("h2oai/h2ogpt-gm-oasst1-en-2048-falcon-40b-v2", True, 40),
        ("openlm-research/open_llama_3b_v2", False, 3),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", True, 3),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", False, 30),
        ("Qwen/Qwen3-1.7B-Base", False, 1.7),
        ("tiny-base", False, 7),
    ],
)
def test_sizes_are_read_from_names(name, active, expected):
    assert billions(name, Assumed(), active=active) == expected


def test_a_plan_imports_nothing_heavy():
    code = "import sys, bezoar_ray.plan; print([m for m in ('ray', 'torch', 'vllm', 'pyarrow') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


ON_GPUS = {
    "teacher": {"model": "org/teacher-36b", "num_gpus": 2},
    "judges": [{"model": "j", "base_url": "http://x/v1", "requests_per_minute": 60}],
    "sft": {"gpus_per_worker": 1, "batch": 16},
    "serve": {"num_gpus": 1},
}


def test_hours_on_more_gpus_follow_from_the_assumptions():
    """Starts, latencies and chains take no time here."""
    shared = Assumed(start=0, step=0, one_sequence=1e9, judge_latency=1e-9)
    found = scaling(parse_recipe(TREE | ON_GPUS, "test"), "H100", shared)
    stages = {stage.name: stage for stage in found.stages}
    work = sum(
        step.gpu_hours
        for step in plan(parse_recipe(TREE | ON_GPUS, "test")).steps
        if step.stage == "generate"
    )
    assert stages["generate"].hours(8) == pytest.approx(work / 8)
    assert stages["filter"].hours(64) == pytest.approx(
        420 / 3600
    )  # a call a second, whatever the GPUs
    assert stages["sft"].hours(64) == stages["sft"].hours(
        1
    )  # one pass of 16 short rows takes as long as one of a row
    assert found.first.name == "filter" and found.fewest == 2


def test_another_gpu_trains_by_its_operations():
    large = ON_GPUS | {
        "sft": {"gpus_per_worker": 1, "batch": 128, "gradient_checkpointing": True}
    }
    recipe = parse_recipe(TREE | large, "test")
    h100, h200 = (
        scaling(recipe, kind, Assumed(start=0, step=0, one_sequence=1e9))
        for kind in ("H100", "H200")
    )
    a100, l40s = (
        scaling(recipe, kind, Assumed(start=0, step=0, one_sequence=1e9))
        for kind in ("A100", "L40S")
    )
    assert h200.stages[2].hours(1) == h100.stages[2].hours(
        1
    )  # the same operations a second
    assert a100.stages[2].hours(1) / h100.stages[2].hours(1) == pytest.approx(989 / 312)
    assert l40s.stages[2].hours(1) < a100.stages[2].hours(1)
    paid = sum(stage.hours(8) * stage.used(8) for stage in h100.stages)
    assert h100.usd(8) == pytest.approx(h100.api_usd + 3 * paid)


def test_a_cluster_on_paper_names_its_assumptions_and_what_stops_gaining():
    text = render_scaling(scaling(load_recipe("openbezoar-3b"), "H100"))
    for said in (
        "generate      –",
        "filter stops gaining first, at 1 GPU",
        "an H100 has 989 TFLOPS",
        "needs 2 GPUs",
    ):
        assert said in text


def test_a_cluster_on_paper_says_what_does_not_fit_on_its_gpus():
    text = render_scaling(scaling(load_recipe("openbezoar-3b"), "L4"))
    assert (
        "22 GiB are too few" in text
        and "generate  h2ogpt-gm-oasst1-en-2048-falcon-40b-v2: at least 40.6" in text
    )
    assert "too few" not in render_scaling(
        scaling(load_recipe("openbezoar-3b"), "H100")
    )


def test_steps_on_more_gpus_are_those_of_the_recipe():
    found = scaling(load_recipe("openbezoar-3b"), "H100")
    sft = next(stage for stage in found.stages if stage.name == "sft")
    planned = next(
        step for step in plan(load_recipe("openbezoar-3b")).steps if step.stage == "sft"
    )
    rows = float(planned.what.split()[0].replace(",", ""))
    assert f"each of {rows * 3 / 16:,.0f} steps" in sft.bound.replace("\n", " ")


def test_on_paper_endpoints_need_no_engine_and_stages_without_work_are_left_out():
    found = scaling(
        load_recipe("api-teacher", ["evaluate.mt_bench=null", "evaluate.harness=null"]),
        "L4",
    )
    assert [stage.name for stage in found.stages] == [
        "generate",
        "filter",
        "sft",
        "hh-sft",
        "align",
    ]
    generate = found.stages[0]
    assert generate.used(8) == 0 and generate.hours(1) == generate.hours(64) > 0
    assert (
        "qwen3-235b-a22b-2507 takes 21 calls a second" in generate.bound
        and "engine" not in generate.bound
    )
    judge = "judges=[{model: j, num_gpus: 4, engine: {tensor_parallel_size: 4}}]"
    assert (
        scaling(load_recipe("modern", [judge, "evaluate.mt_bench=null"]), "H100").fewest
        == 4
    )


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [("modern", "V100", "H100, H200"), ("tiny", "L4", "uses no GPU")],
)
def test_a_cluster_that_cannot_be_is_refused(name, kind, said):
    with pytest.raises(RecipeError, match=said):
        scaling(load_recipe(name), kind)


@pytest.mark.parametrize(
    ("model", "billions", "linear"),
    [
        ("h2oai/h2ogpt-gm-oasst1-en-2048-falcon-40b-v2", 41.3, 40.8),
        ("openlm-research/open_llama_3b_v2", 3.43, 3.22),
        ("Qwen/Qwen3-4B-Instruct-2507", 4.02, 3.63),
        ("Qwen/Qwen3-0.6B-Base", 0.596, 0.44),
    ],
)
def test_known_shapes_have_the_published_number_of_weights(model, billions, linear):
    shape = shape_of(model, 7.0)
    assert shape.known
    assert shape.weights / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.linear_weights / 1e9 == pytest.approx(linear, rel=0.01)


@pytest.mark.parametrize("billions", [0.5, 3, 13, 70])
def test_another_model_has_a_shape_of_about_its_size(billions):
    shape = shape_of(f"org/other-{billions}b", billions)
    assert not shape.known and shape.weights / 1e9 == pytest.approx(billions, rel=0.1)


def test_a_model_on_this_machine_has_its_own_shape(tmp_path, monkeypatch):
    """By its folder, or in the hub's cache."""
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "tie_word_embeddings": True,
    }
    expected = Shape(2, 64, 96, 4, 2, 16, 100, tied=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    assert shape_of(str(tmp_path / "mine"), 7.0) == expected
    snapshot = tmp_path / "models--org--mine/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert shape_of("org/mine", 7.0) == expected


@pytest.mark.parametrize("architecture", architectures.NAMES)
def test_every_configuration_is_read_or_passed_over(architecture, tmp_path):
    """By transformers' own files: linear weights are counted, or nothing is claimed."""
    model = architectures.model(architecture)
    model.config.save_pretrained(tmp_path)
    found = shape_of(str(tmp_path))
    if architecture in ("mamba2", "qwen3_5"):  # no attention, or not in all layers
        assert not found.known
        return
    linear = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and "embed" not in name and "lm_head" not in name
    )
    assert found.known and found.linear_weights == pytest.approx(linear, rel=0.02)
    assert found.tied == model.config.tie_word_embeddings


@pytest.mark.parametrize(
    "config",
    [
        {
            "model_type": "gemma3",
            "text_config": {"hidden_size": 2560, "num_hidden_layers": 34},
        },  # the rest is left out
        {
            "model_type": "qwen3_moe",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 100,
            "num_experts": 8,
        },
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 100,
            "moe_num_experts": 64,
        },
        {
            "d_model": 64,
            "n_layers": 2,
            "n_heads": 4,
            "vocab_size": 100,
            "ffn_config": {"moe_num_experts": 16},
        },
        {
            "hidden_size": [64, 64],
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 100,
        },
        {"text_config": "x"},
        {},
        [],
        "",
    ],
)
def test_a_configuration_that_does_not_say_enough_claims_nothing(config, tmp_path):
    (tmp_path / "qwen3-8b-upcycled").mkdir()
    (tmp_path / "qwen3-8b-upcycled/config.json").write_text(json.dumps(config))
    found = shape_of(str(tmp_path / "qwen3-8b-upcycled"), 4.0)
    is_object = isinstance(
        config, dict
    )  # else it is no configuration, and the name is all there is
    assert found.known != is_object
    assert not is_object or found.weights / 1e9 == pytest.approx(4, rel=0.1)


def test_a_configuration_that_is_cut_off_is_passed_over(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 64, "num_')
    assert not shape_of(str(tmp_path), 4.0).known


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "gptq", "bits": 8}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"quant_method": "mxfp4"}, 4),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            },
            4,
        ),
        (None, None),
    ],
)
def test_a_configuration_says_whether_weights_are_quantised(
    quantization, bits, tmp_path
):
    config = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": quantization})
    )
    assert shape_of(str(tmp_path)).bits == bits


def test_one_head_of_keys_serves_all_in_an_old_falcon(tmp_path):
    config = {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "num_kv_heads": 71,
        "multi_query": True,
        "vocab_size": 65_024,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = shape_of(str(tmp_path))
    assert (found.kv_heads, found.tied, found.gated) == (1, True, False)
    assert found.weights / 1e9 == pytest.approx(6.9, rel=0.02)  # falcon-7b's


def gpu_needs(recipe, card):
    return {need.stage: need for need in plan(recipe, gpu=GPUS[card]).needs}


def test_what_was_measured_on_an_h200_is_what_the_plan_foretells():
    """shared table of one H200: GiB of passes of a 3.4 B model, adapters on all linear layers."""
    lora = {
        "targets": [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
    }
    for tokens, recomputed, compiled, gib in (
        (3_839, False, False, 21.3),
        (16_210, False, False, 82.3),
        (16_210, True, False, 10.8),
        (3_839, False, True, 18.5),
        (16_210, True, True, 10.8),
    ):
        sets = [
            f"sft.micro_tokens={tokens}",
            f"sft.gradient_checkpointing={recomputed}",
            "sft.workers=1",
            f"sft.lora={json.dumps(lora)}",
            "sft.batch=64",
        ]
        found = training_pass(
            load_recipe("openbezoar-3b", sets), "sft", memory=141, compiled=compiled
        )
        assert (found.tokens, found.recomputed) == (tokens, recomputed)
        assert found.gib == pytest.approx(gib, rel=0.05)


def test_the_memory_of_each_stage_is_said_and_whether_it_fits():
    found = gpu_needs(load_recipe("openbezoar-3b"), "A100")
    assert list(found) == ["generate", "sft", "hh-sft", "align", "evaluate"]
    assert all(need.fits for need in found.values())
    small = gpu_needs(load_recipe("openbezoar-3b"), "L4")
    assert not small["generate"].fits and small["sft"].fits
    text = render(plan(load_recipe("openbezoar-3b"), gpu=GPUS["L4"]))
    assert "Memory of an L4 (22 GiB), estimated" in text
    assert (
        "at least 40.6 GiB, and no room is left for a cache on 2 GPUs: DOES NOT FIT"
        in text
    )
    assert (
        "open_llama_3b_v2: at least 6.4 GiB, passes of up to 4,096 tokens take 19.3, activations kept: fits"
        in text
    )
    assert not plan(load_recipe("tiny")).needs and "Memory of" not in render(
        plan(load_recipe("tiny"))
    )


def test_memory_counts_compiled_layers_where_training_would_compile():
    few, many = (
        gpu_needs(load_recipe("openbezoar-3b", [f"sft.epochs={count}"]), "H100")["sft"]
        for count in (0.5, 3)
    )
    assert (
        "passes of up to 8,192 tokens" in few.note
    )  # of 103 steps, which are not worth compiling
    assert "passes of up to 16,384 tokens" in many.note  # of 619


def test_a_share_of_a_gpu_is_planned_as_that_share():
    half, whole = (
        gpu_needs(
            load_recipe("modern", [f"sft.gpus_per_worker={share}", "sft.workers=1"]),
            "H100",
        )["sft"]
        for share in (0.5, 1)
    )
    taken = [
        float(re.search(r"take ([\d.]+)", need.note).group(1)) for need in (half, whole)
    ]
    assert taken[0] < 79.1 / 2 < taken[1]


def test_an_engine_holds_its_longest_sequence_or_does_not_fit():
    set_length = gpu_needs(
        load_recipe("one-gpu", ["teacher.engine={max_model_len: 4096}"]), "L4"
    )["generate"]
    its_own = gpu_needs(load_recipe("one-gpu", ["teacher.engine={}"]), "L4")["generate"]
    assert set_length.fits and not its_own.fits
    assert "without engine.max_model_len it asks for 262,144" in str(its_own)


@pytest.mark.parametrize(
    ("told", "tokens"),
    [("8k", 8_000), ("8K", 8_192), ("auto", 1), (-1, 1), (4096, 4096)],
)
def test_the_longest_sequence_may_be_told_as_vllm_reads_it(told, tokens):
    need = gpu_needs(
        load_recipe("one-gpu", [f"serve.engine={{max_model_len: {told}}}"]), "L4"
    )["evaluate"]
    weights = 2 * shape_of("qwen3-1.7b").weights / 2**30
    cache = tokens * 2 * shape_of("qwen3-1.7b").kv_numbers / 2**30
    assert need.least == pytest.approx(weights + 2 + cache)


def test_quantised_weights_are_counted_as_such():
    whole, named, told = (
        gpu_needs(
            load_recipe(
                "modern", [f"teacher.model={model}", f"teacher.engine={engine}"]
            ),
            "L4",
        )["generate"]
        for model, engine in (
            ("Qwen/Qwen3-14B", "{max_model_len: 4096}"),
            ("Qwen/Qwen3-14B-AWQ", "{max_model_len: 4096}"),
            ("Qwen/Qwen3-14B", "{max_model_len: 4096, quantization: fp8}"),
        )
    )
    assert named.least < told.least < whole.least and named.fits and not whole.fits
    like = gpu_needs(
        load_recipe("modern", ["teacher.model=/models/checkpoint4-14b"]), "L4"
    )["generate"]
    assert like.least > 25  # "int4" is a part of a word there


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", "planned by its 56 billion weights"),
        ("HuggingFaceTB/SmolLM2-135M", "planned by its 0.135 billion weights"),
        ("deepseek-ai/DeepSeek-V3", "planned as if it had 7 billion weights"),
    ],
)
def test_what_is_known_of_a_models_size_is_said(model, said):
    assert said in str(
        gpu_needs(load_recipe("modern", [f"teacher.model={model}"]), "H100")["generate"]
    )


def test_hours_and_memory_of_a_local_model_are_of_the_same_size(tmp_path):
    config = {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    hours = [
        sum(
            step.gpu_hours
            for step in plan(load_recipe("modern", [f"teacher.model={model}"])).steps
            if step.stage == "generate"
        )
        for model in (tmp_path / "mine", "org/other-70.5b")
    ]
    assert hours[0] == pytest.approx(hours[1], rel=0.01)


def test_under_zero_3_weights_are_shared_and_activations_recomputed():
    sets = ["base.model=org/large-70b", "sft.load_in_4bit=false"]
    alone = gpu_needs(load_recipe("modern", sets), "H100")["sft"]
    recipe = load_recipe(
        "modern", [*sets, "sft.zero_stage=3", "sft.workers=8", "sft.compile=true"]
    )
    shared = gpu_needs(recipe, "H100")["sft"]
    assert "no room for a row" in alone.note and "activations recomputed" in shared.note
    assert float(re.search(r"take ([\d.]+)", shared.note).group(1)) < 40
    assert not recipe.sft.compiles(1000)


def test_a_float32_base_keeps_twice_as_much():
    sets = ["sft.micro_tokens=2048", "sft.gradient_checkpointing=false"]
    half, whole = (
        gpu_needs(load_recipe("modern", [*sets, f"base.dtype={kind}"]), "H100")["sft"]
        for kind in ("bfloat16", "float32")
    )
    half, whole = (
        float(re.search(r"take ([\d.]+)", need.note).group(1)) for need in (half, whole)
    )
    assert 1.8 < whole / half < 2.1


def test_a_merge_that_does_not_fit_is_named():
    need = gpu_needs(load_recipe("modern", ["base.model=Qwen/Qwen3-14B"]), "L4")["sft"]
    assert not need.fits and "merging at the end takes 27.5" in need.note


def test_an_engine_spread_through_ray_takes_gpus_beside_its_actor():
    engine = "{tensor_parallel_size: 2, distributed_executor_backend: ray, max_model_len: 4096}"
    found = plan(
        load_recipe("modern", ["teacher.num_gpus=0", f"teacher.engine={engine}"])
    )
    assert sum(step.gpu_hours for step in found.steps if step.stage == "generate") > 0
    assert found.needs[0].stage == "generate" and "on 2 GPUs" in str(found.needs[0])


def test_stages_that_have_nothing_to_train_on_need_no_memory():
    assert "align" not in gpu_needs(load_recipe("modern", ["seeds.hh_rlhf=[]"]), "H100")
    assert "align" not in gpu_needs(
        load_recipe("modern", ["align.method=none"]), "H100"
    )


def test_a_model_whose_name_says_no_size_is_named_as_a_guess():
    recipe = load_recipe("modern", ["base.model=org/mystery"])
    assert "its shape is not known" in render(plan(recipe))


@pytest.mark.parametrize(
    ("part", "tokens", "recomputed"),
    [
        ({}, 16_384, False),
        (
            {"batch": 4, "workers": 2},
            2 * 2048,
            False,
        ),  # no more rows than a worker has of a step
        ({"micro_batch": 3}, 3 * 2048, False),
        ({"gradient_checkpointing": True}, 16_384, True),
    ],
)
def test_the_largest_pass_is_the_one_that_training_would_choose(
    part, tokens, recomputed
):
    sets = [f"sft.{name}={value}" for name, value in part.items()]
    found = training_pass(load_recipe("modern", sets), "sft", memory=80, compiled=False)
    assert (found.tokens, found.recomputed) == (tokens, recomputed)
    assert (
        training_pass(load_recipe("modern", sets), "sft", memory=2, compiled=False)
        is None
    )


def test_the_recipes_own_kind_of_gpu_is_planned():
    def kinds(*sets, gpu=None):
        return [
            need.gpu.kind for need in plan(load_recipe("modern", sets), gpu=gpu).needs
        ]

    assert kinds() == ["H100"] * 5
    assert kinds("sft.accelerator_type=L40S") == ["L40S"] * 5
    mixed = ("teacher.accelerator_type=H200", "sft.accelerator_type=L40S")
    assert kinds(*mixed) == ["H200", "L40S", "H100", "H100", "H100"]
    assert kinds(*mixed, gpu=GPUS["L4"]) == ["L4"] * 5
    with pytest.raises(
        RecipeError,
        match="--gpu V100: no such kind of GPU is known; there are H100, H200",
    ):
        find_gpu("V100", "--gpu")


def test_a_kind_that_is_not_known_is_named():
    text = render(plan(load_recipe("modern", ["serve.accelerator_type=T4"])))
    assert "- T4 is not known, and planned as an H100" in text


@pytest.mark.parametrize(
    ("name", "kind"), [("GeForce-RTX-4090", "RTX4090"), ("A100-80G", "A100")]
)
def test_rays_other_names_are_known(name, kind):
    assert {
        need.gpu.kind
        for need in plan(load_recipe("modern", [f"sft.accelerator_type={name}"])).needs
    } == {kind}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100-40G"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_a_card_is_known_by_its_drivers_name_and_its_variants_are_not(name, kind):
    assert kind_of(name) == kind


def test_speeds_are_shares_of_the_cards_operations():
    openllama = shape_of("openlm-research/open_llama_3b_v2", 3.4)
    measured = [
        training_speed(
            openllama, GPUS["H200"], found.tokens, found.compiled, found.recomputed
        )
        for found in SPEEDS
    ]
    assert measured == pytest.approx([found.tokens_per_s for found in SPEEDS], rel=0.02)
    assert training_speed(openllama, GPUS["A100"], 16_210, True, True) == pytest.approx(
        20_281 * 312 / 989, rel=0.02
    )
    assert training_speed(openllama, GPUS["H200"], 929, False, False) == pytest.approx(
        3_794, rel=0.05
    )  # measured, too
    assert training_speed(openllama, GPUS["H200"], 929, False, True) == pytest.approx(
        929 / 0.435, rel=0.15
    )  # padded


def test_more_workers_than_a_step_has_work_for_cost_hours():
    one, eight = (
        plan(load_recipe("openbezoar-3b", [f"sft.workers={count}"])) for count in (1, 8)
    )
    hours = [
        sum(step.gpu_hours for step in found.steps if step.stage == "sft")
        for found in (one, eight)
    ]
    assert hours[1] > 3 * hours[0]


def test_code_that_is_not_ours_is_named_before_it_runs():
    own = {
        "generate": TREE["generate"]
        | {"own": {"riddles": {"function": "mine.py:riddles"}}}
    }
    trusted = {
        "base": {
            "model": "org/base-2b",
            "revision": "abc1234",
            "trust_remote_code": True,
        }
    }
    tasks = {
        "evaluate": {
            "harness": {"tasks": [{"task": "mine"}], "include_path": "my-tasks"}
        }
    }
    text = render(plan(parse_recipe(TREE | own | trusted | tasks, "test")))
    assert (
        "- functions that the tasks in my-tasks name (evaluate.harness.include_path)"
        in text
    )
    assert (
        "- mine.py:riddles (generate.own.riddles)" in text
        and "- code of org/base-2b at abc1234 (base" in text
    )
    assert "not ours" not in render(plan(RECIPE))


def test_who_reads_a_plan_may_stop_reading():
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"
    }
    command = [sys.executable, "-m", "bezoar_ray.cli", "plan", "openbezoar-3b"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0
