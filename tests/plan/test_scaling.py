"""`bezoar plan --cluster`: hours and dollars on more GPUs, checked by hand."""

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.plan import Assumed, plan, render_scaling, scaling
from bezoar_ray.recipe import load_recipe, parse_recipe
from tests.plan.small_recipe import TREE

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
        "needs at least 2 GPUs",
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
    rows = float(planned.description.split()[0].replace(",", ""))
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
