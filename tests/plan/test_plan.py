"""A plan's calls, tokens, dollars and hours, checked by hand, and again from a pilot."""

import json
import os
import subprocess
import sys

import pytest

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.plan import Assumed, plan, plan_from, render
from bezoar_ray.plan.steps import billions
from bezoar_ray.plan.training_hours import training_work
from bezoar_ray.recipe import load_recipe, parse_recipe, recipe_names
from bezoar_ray.runtime.gpus import GPUS, find_gpu
from bezoar_ray.runtime.model_shapes import shape_of
from tests.plan.small_recipe import RECIPE, TREE


def test_counterfactual_pairs_cost_a_call_to_each_judge_and_no_more_than_rows():
    def planned(pairs):
        section = RECIPE.filter.model_copy(update={"counterfactuals": pairs})
        return plan(RECIPE.model_copy(update={"filter": section}))

    assert calls(planned(100), "counterfactual judge") == [100, 100]
    assert calls(planned(9999), "counterfactual judge") == [420, 420]
    extra = planned(100).total("tokens_in") - plan(RECIPE).total("tokens_in")
    assert extra == 2 * 100 * 800


def calls(found, what):
    return [step.calls for step in found.steps if step.description == what]


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
    assert calls(found, "counterfactual judge") == []
    assert (
        calls(found, "mt_bench answer")
        == calls(found, "mt_bench judge")
        == [10 * 2 * 4]
    )
    assert calls(found, "mt_bench comparison") == [
        10 * 2 * 3 * 2
    ]  # three pairs, in both orders
    assert calls(found, "harness request") == [100 * 3.5 * 4]


@pytest.mark.parametrize(
    ("section", "rm", "answers"),
    [
        ({"one": "filtered.parquet"}, None, 2 * 2985 * 4),  # four checkpoints
        ({"one": "filtered.parquet"}, {}, 2 * 2985 * 5),
        ({"two": "test.parquet"}, {}, 4 * 1865 * 5),
        ({"one": "a.jsonl", "two": "b.jsonl", "limit": 10}, {}, (460 + 240) * 5),
        ({"one": "tiny", "two": "tiny"}, {}, (2 * 160 + 4 * 120) * 5),
    ],
)
def test_answers_of_reward_bench_are_counted_for_each_model(section, rm, answers):
    evaluate = TREE["evaluate"] | {"reward_bench": section}
    found = plan(parse_recipe(TREE | {"evaluate": evaluate, "rm": rm}, "test"))
    assert calls(found, "reward_bench answer") == [answers]
    assert calls(plan(RECIPE), "reward_bench answer") == []


@pytest.mark.parametrize(("method", "pairs"), [("dpo", 3), ("kto", 3), ("none", 2)])
def test_comparisons_with_the_aligned_checkpoint_are_counted_if_it_is_made(
    method, pairs
):
    found = plan(parse_recipe(TREE | {"align": {"method": method}}, "test"))
    assert calls(found, "mt_bench comparison") == [10 * 2 * pairs * 2]


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
    judge = next(step for step in found.steps if step.description == "judge")
    assert judge.usd == pytest.approx(0.5 * 3 * (420 * 800 * 1 + 420 * 80 * 10) / 1e6)


def test_dollars_are_tokens_times_prices():
    found = plan(RECIPE)
    judge = next(
        step
        for step in found.steps
        if step.model == "one" and step.description == "judge"
    )
    assert (judge.tokens_in, judge.tokens_out) == (420 * 800, 420 * 80)
    assert judge.usd == pytest.approx((420 * 800 * 1 + 420 * 80 * 10) / 1e6)
    assert found.total("usd") == pytest.approx(sum(step.usd for step in found.steps))


def test_gpu_hours_follow_from_tokens_and_only_where_there_is_a_gpu():
    found = {(step.stage, step.description): step for step in plan(RECIPE).steps}
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
    # The calls for counterfactual pairs are none for the rows themselves.
    pilot["counterfactuals"] = {"pairs": 10}
    (tmp_path / "summary.json").write_text(json.dumps(pilot))
    found = plan_from(RECIPE, tmp_path).assumed
    assert found.judged == (60 - 2 * 10) / (40 * 2)
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
    judge = next(step for step in planned.steps if step.description == "judge")
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
        assert (after.description, after.tokens_in) == (
            before.description,
            pytest.approx(before.tokens_in),
        )
        assert after.gpu_hours == pytest.approx(before.gpu_hours)


def test_from_a_folder_without_a_run_says_so(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"--from .*no summary\.json with rows in it"):
        plan_from(RECIPE, tmp_path)
    (tmp_path / "summary.json").write_text('{"data": ')
    with pytest.raises(BezoarError, match="is not valid JSON"):
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
        assert step.description in text


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_has_a_plan(name):
    recipe = load_recipe(name)
    found = plan(recipe)
    assert (found.total("calls") > 0) == bool(recipe.schemes)
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


def test_ppo_computes_each_episode_in_every_pass_and_a_critic_as_well():
    sets = ["align.method=ppo", "align.gpus_per_worker=1"]

    def work(*more: str) -> tuple[str, float]:
        steps = plan(load_recipe("helpsteer2", [*sets, *more]), gpu=GPUS["H100"]).steps
        (step,) = [step for step in steps if step.stage == "align"]
        return step.description, step.gpu_hours

    description, hours = work()
    assert description == "60,000 episodes, without their sampling"
    assert work("align.ppo.passes=8")[1] == pytest.approx(hours * 52 / 28, rel=0.01)
    grouped = ["align.ppo.advantage=rloo", "align.ppo.group=2", "align.batch=32"]
    description, hours_in_groups = work(*grouped)
    assert description == "120,000 episodes, without their sampling"
    assert hours_in_groups == pytest.approx(2 * hours * 15 / 28, rel=0.05)


def test_a_round_of_steer_scores_and_trains_each_answer():
    recipe = load_recipe("tiny-steer")
    (work,) = [
        work for work in training_work(recipe, {}, Assumed()) if work.stage == "align"
    ]
    assert "128 prompts with 10 answers each" in work.description
    alone = load_recipe("tiny-steer", ["align.steer.iterations=0"])
    *_, first = training_work(alone, {}, Assumed())
    assert first.rows == work.rows
    # Two epochs, and three forward passes that count as one.
    answers = 128 * 10 * 3 * Assumed().hh_row
    tokens = work.tokens(recipe.align) - first.tokens(alone.align)
    assert tokens == pytest.approx(answers)
