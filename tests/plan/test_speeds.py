"""Planned training speeds: they match the measured ones."""

import pytest

from bezoar_ray.plan import plan
from bezoar_ray.plan.speeds import SPEEDS, training_speed
from bezoar_ray.recipe import load_recipe
from bezoar_ray.runtime.gpus import GPUS
from bezoar_ray.runtime.model_shapes import shape_of


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
