"""What report and comparison show of a policy that learned from the reward model."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from bezoar_ray import layout
from bezoar_ray.recipe import load_recipe
from bezoar_ray.report.compare import as_page, as_text, compare
from bezoar_ray.report.content import gather
from bezoar_ray.report.page import render
from bezoar_ray.store import Store
from tests.report.test_report_stage import summary, text_of

PROMPT = [{"role": "user", "content": "Say <b>hello</b>."}]


def look(step: int, score: float, kl: float, right: int) -> dict[str, Any]:
    return {
        "step": step,
        "score": score,
        "score_sd": 1.0,
        "kl": kl,
        "length": 9.5,
        "ended": 0.9375,
        "right": right,
        "known": 50,
    }


def learned(right: int = 38, accuracy: float = 0.7) -> dict[str, Any]:
    """summary.json of a run whose score has risen."""
    found = summary()
    train = found["train"]
    ppo = train.pop("dpo")
    ppo["by_step"] = [
        {"step": n, "loss": 1.0, "dataset": "prompts", "score": n / 5, "kl": n / 2}
        for n in range(1, 6)
    ]
    ppo["heldout_answers"] = [look(0, 0.1, 0.0, 40), look(5, 0.9, 2.5, right)]
    ppo["heldout_accuracy"] = accuracy
    train["hh-sft"] |= {"heldout_accuracy": 0.7, "heldout_ci95": [0.6, 0.78]}
    train["ppo"] = ppo
    bench = found["eval"]["mt_bench"]
    bench["ppo"] = bench.pop("dpo")
    return found


def run(folder: Path, found: dict[str, Any]) -> tuple[str, Any, Store]:
    store = Store(folder)
    recipe = load_recipe("tiny-ppo")
    store.replace_json(layout.SUMMARY, found)
    answers = [
        {"step": 0, "text": "Hello.", "score": 0.1, "ended": True},
        {"step": 5, "text": "Hello, <i>friend</i>!", "score": 0.9, "ended": True},
    ]
    row = {"id": "a", "prompt": PROMPT, "answers": answers}
    store.replace(layout.checkpoint("ppo").answers, orjson.dumps(row) + b"\n")
    return folder.name, recipe, store


def test_the_report_shows_scores_against_kl_and_answers_before_and_after(
    tmp_path: Path,
) -> None:
    _, recipe, store = run(tmp_path, learned())
    page = render(gather(recipe, store))
    text = text_of(page)
    assert "ppo: score and KL divergence" in text
    assert "0 0.10 0.00 9.5 93.8 % 80.0 % of 50" in text
    assert "5 0.90 2.50 9.5 93.8 % 76.0 % of 50" in text
    assert "before, score 0.10 Hello." in text
    assert "after, score 0.90 Hello, <i>friend</i>!" in text
    assert "<i>friend" not in page and "<b>hello" not in page
    assert 'aria-label="Score against KL divergence"' in page
    assert "share of right answers" in page


def test_without_a_truth_nothing_is_said_of_right_answers(tmp_path: Path) -> None:
    found = learned()
    for one in found["train"]["ppo"]["heldout_answers"]:
        del one["right"], one["known"]
    _, recipe, store = run(tmp_path, found)
    page = render(gather(recipe, store))
    assert "5 0.90 2.50 9.5 93.8 %" in text_of(page)
    assert "right" not in text_of(page)[text_of(page).index("score and KL") :][:900]
    assert "share of right answers" not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (learned(right=20), "right answers fell from 80 to 40 %"),
        (learned(accuracy=0.55), "held-out accuracy fell from 70 to 55 %"),
    ],
)
def test_a_score_that_rises_while_another_measure_falls_is_a_warning(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    _, recipe, store = run(tmp_path, change)
    content = gather(recipe, store)
    (warning,) = content.warnings
    assert "ppo may exploit the reward model" in warning
    assert "rose from 0.10 to 0.90" in warning
    assert message in warning
    assert message in text_of(render(content))


def test_a_lower_grade_by_the_judge_is_a_warning_too(tmp_path: Path) -> None:
    found = learned()
    found["eval"]["mt_bench"]["ppo"]["score"] = 3.0
    _, recipe, store = run(tmp_path, found)
    (warning,) = gather(recipe, store).warnings
    assert "the score in MT-Bench fell from 4.00 to 3.00" in warning


def test_neither_a_small_fall_nor_a_fallen_score_is_a_warning(tmp_path: Path) -> None:
    _, recipe, store = run(tmp_path / "small", learned(right=36, accuracy=0.65))
    assert gather(recipe, store).warnings == []
    found = learned(right=10)
    found["train"]["ppo"]["heldout_answers"][1]["score"] = 0.0
    _, recipe, store = run(tmp_path / "fallen", found)
    assert gather(recipe, store).warnings == []


def test_policies_of_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    steered = summary()
    steered["train"]["steer"] = steered["train"].pop("dpo") | {
        "rounds": [
            {"distance_first": 1.2, "distance_last": 0.7, "effective_samples": 2.71}
        ]
    }
    runs = [
        run(tmp_path / "ppo", learned()),
        run(tmp_path / "drpo", learned(right=45)),
        run(tmp_path / "steer", steered),
    ]
    comparison = compare(runs)
    lines = as_text(comparison).splitlines()
    (right,) = [line for line in lines if "right answers" in line]
    assert right.split("%")[1].split() == [
        *["80", "to", "76", "of", "50"],
        *["80", "to", "90", "of", "50"],
        "–",
    ]
    (distance,) = [line for line in lines if "distance, round 1" in line]
    assert distance.split()[3:] == ["–", "–", *["1.20", "to", "0.70"]]
    page = as_page(comparison)
    assert page.count('aria-label="Score against KL divergence"') == 1
    assert ">drpo<" in page
