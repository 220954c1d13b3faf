"""SteerLM on small rows: SteerLM 1, a round of SteerLM 2.0, and what a killed run repeats."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from bezoar_ray import layout
from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.recipe import Recipe, parse_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import pairs
from bezoar_ray.train.attribute_bins import goal_log_probabilities
from bezoar_ray.train.encoding import IGNORED, encode
from bezoar_ray.train.tokenizer import load_tokenizer
from tests.end_to_end import begun, replies
from tests.train.conftest import (
    FACTS,
    in_process,
    run_stage,
    save_base,
    with_rm,
    write_rows,
)
from tests.train.test_launcher import kill, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUN_STEER = """
import sys
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.recipe import Recipe
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import training_stages

with ray_session():
    recipe = Recipe.model_validate_json(open(sys.argv[1]).read())
    store = Store(sys.argv[2])
    context = StageContext(recipe, store, sys.argv[3], Progress(), stage="align")
    training_stages.run(context)
"""
GOALS = [{"correctness": 4, "helpfulness": 4}, {"correctness": 0, "helpfulness": 1}]
PROMPTS = 8
SAMPLES = 4


@pytest.fixture(scope="module")
def steered_recipe(
    recipe: Recipe, rated: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """A recipe with a round of SteerLM 2.0, on a base that vLLM can run on a CPU."""
    return steering(recipe, rated, tmp_path_factory.mktemp("steered"))


def steering(recipe: Recipe, rated: dict[str, Any], folder: Path) -> Recipe:
    """The recipe, with its base and its rows in a folder."""
    # vLLM's attention on CPUs needs 32 dimensions in a head.
    save_base(folder / "base", heads=2)
    tree = with_rm(
        recipe, folder, rated, epochs=4, order=["preferences", "ratings"]
    ).model_dump(mode="json")
    tree["base"]["model"] = str(folder / "base")
    tree["align"] |= {
        "method": "steer",
        "learning_rate": 0.01,
        "epochs": 8,
        "steer": {
            "iterations": 1,
            "samples": SAMPLES,
            "prompts": PROMPTS,
            "max_tokens": 64,
            "epochs": 8,
            "batch": PROMPTS,
            "learning_rate": 0.003,
            "goals": GOALS,
            "sampler": {"dtype": "float32", "engine": {"max_model_len": 256}},
        },
    }
    small = parse_recipe(tree, "tests")
    pretrain(folder / "base", small)
    return small


def pretrain(folder: Path, recipe: Recipe) -> None:
    """Have the base say right and wrong colours, and end its answers."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(recipe)
    rows = []
    for animal, colour in FACTS:
        for said in (colour, "red"):
            question = {"role": "user", "content": f"What colour is {animal}?"}
            answer = {"role": "assistant", "content": f"The {animal} is {said}."}
            tokens = encode(tokenizer, [question, answer])
            rows.append({name: torch.tensor(ids) for name, ids in tokens.items()})
    batch = {
        "input_ids": pad_sequence([row["input_ids"] for row in rows], True),
        "labels": pad_sequence([row["labels"] for row in rows], True, IGNORED),
    }
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def before_align(
    ray_session: None,
    steered_recipe: Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Store:
    """A run directory with the checkpoints sft, hh-sft and rm."""
    store = Store(tmp_path_factory.mktemp("before-align") / "run")
    write_rows(store, "lamini", "orca", "evol_instruct")
    context = StageContext(steered_recipe, store, "test", Progress())
    pairs.ensure(context)
    for stage in ("sft", "hh-sft", "rm"):
        in_process(context, stage)
    return store


@pytest.fixture(scope="module")
def steered(
    before_align: Store, steered_recipe: Recipe
) -> tuple[StageContext, dict[str, Any]]:
    """The run directory after SteerLM 1 and a round, and the metrics of the stage."""
    context = StageContext(steered_recipe, before_align, "first", Progress())
    result = run_stage(context, "align")
    return context, result.summary["train"]["steer"]


def test_a_round_weighs_answers_and_comes_nearer_to_its_target(
    steered: tuple[StageContext, dict[str, Any]],
) -> None:
    _, metrics = steered
    (found,) = metrics["rounds"]
    assert 1 <= found["effective_samples"] <= SAMPLES
    assert 0 < found["groups"] <= PROMPTS
    assert found["answers"] <= PROMPTS * SAMPLES
    assert found["distance_last"] < found["distance_first"]
    assert found["goal_distance_weighted"] < found["goal_distance"]
    assert metrics["goal"] == GOALS[0]
    points = metrics["by_step"]
    steps = [point["step"] for point in points]
    assert steps == sorted(set(steps))
    assert {point["dataset"] for point in points} == {"ratings", "steer-1"}
    for point in points:
        has_distance = "distance" in point and "effective_samples" in point
        assert has_distance == (point["dataset"] == "steer-1")


def test_the_weights_are_those_of_their_parts(
    steered: tuple[StageContext, dict[str, Any]],
) -> None:
    context, metrics = steered
    by_prompt = weights_of(context.store)
    (found,) = metrics["rounds"]
    assert len(by_prompt) == found["groups"]
    for rows in by_prompt.values():
        ratings = [[row[name] for name in ATTRIBUTES] for row in rows]
        goals = [orjson.loads(row["goal"]) for row in rows]
        expected = goal_log_probabilities(ratings, goals)
        assert [row["log_goal"] for row in rows] == pytest.approx(expected.tolist())
        log_weights = [
            row["log_goal"] + row["log_plain"] - row["log_sampler"] for row in rows
        ]
        shares = torch.tensor(log_weights).softmax(dim=0).tolist()
        assert [row["weight"] for row in rows] == pytest.approx(shares, abs=1e-5)


def test_a_round_begins_at_the_model_that_was_sampled(
    steered: tuple[StageContext, dict[str, Any]],
) -> None:
    """All groups are in the first step, in which b' is still equal for all answers."""
    context, metrics = steered
    distances = []
    for rows in weights_of(context.store).values():
        shares = [row["weight"] for row in rows]
        distances.append(sum(w * math.log(w * len(rows)) for w in shares if w > 0))
    expected = sum(distances) / len(distances)
    first = next(point for point in metrics["by_step"] if "distance" in point)
    assert first["distance"] == pytest.approx(expected, abs=2e-3)


def test_the_checkpoint_states_its_goal(
    steered: tuple[StageContext, dict[str, Any]],
) -> None:
    context, metrics = steered
    store = context.store
    lineage = store.read_json(layout.checkpoint("steer").lineage)
    assert lineage["parent"] == "../hh-sft"
    assert lineage["goal"] == GOALS[0]
    assert lineage["system"] == "helpfulness:4,correctness:4"
    assert lineage["iterations"] == 1
    assert metrics["heldout_accuracy"] is not None
    for folder in ("adapter", "merged", "joined"):
        assert store.exists(f"{layout.checkpoint('steer').folder}/{folder}")
    # That of SteerLM 1 is large, and no longer needed.
    assert store.exists(layout.part_adapter("steer-0"))
    assert not store.exists(layout.part_merged("steer-0"))


def test_the_stage_again_samples_and_trains_nothing(
    steered: tuple[StageContext, dict[str, Any]],
) -> None:
    context, metrics = steered
    store = context.store
    # Not its configuration, in which PEFT lists a set of names in any order.
    weights = f"{layout.checkpoint('steer').adapter}/adapter_model.safetensors"
    before = store.digest(weights)
    again = replace(context, session="second")
    found = run_stage(again, "align").summary["train"]["steer"]
    assert accounts(store.root, "second")["steerer"]["last_run"]["sent"] == 0
    assert found["by_step"] == metrics["by_step"]
    assert found["rounds"] == metrics["rounds"]
    assert store.digest(weights) == before


def weights_of(store: Store) -> dict[str, list[dict[str, Any]]]:
    """The rows of the round's weights, by prompt."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    table = pq.read_table(store.path("train/steer-1/weights.parquet"))
    for row in table.to_pylist():
        by_prompt.setdefault(row["id"], []).append(row)
    return by_prompt


def test_killed_while_it_samples_it_asks_for_no_answer_twice(
    before_align: Store, steered_recipe: Recipe, tmp_path: Path
) -> None:
    tree = steered_recipe.model_dump(mode="json")
    tree["align"]["steer"] |= {"prompts": 20, "samples": 10}
    # One after the other, so that there is time to kill it.
    tree["align"]["steer"]["sampler"]["max_in_flight"] = 1
    slow = parse_recipe(tree, "tests")
    store = Store(tmp_path / "run")
    for folder in ("data", "checkpoints"):
        shutil.copytree(before_align.path(folder), store.path(folder))
    store.remove("checkpoints/steer")
    recipe_file = tmp_path / "recipe.json"
    recipe_file.write_text(slow.model_dump_json())

    def command(session: str) -> list[str]:
        return [
            sys.executable,
            "-c",
            RUN_STEER,
            str(recipe_file),
            str(store.root),
            session,
        ]

    first = subprocess.Popen(command("first"), stdout=subprocess.DEVNULL)
    until(lambda: len(replies(store.root, "steerer")) >= 10 or first.poll() is not None)
    assert first.poll() is None
    kill(first)
    answered = replies(store.root, "steerer")
    assert 10 <= len(answered) < 200

    subprocess.run(command("second"), stdout=subprocess.DEVNULL, check=True)
    keys = [key for key, _ in replies(store.root, "steerer")]
    assert len(keys) == len(set(keys)) == 200
    assert {key for key, _ in answered} <= set(keys)
    sent = accounts(store.root, "second")["steerer"]["last_run"]["sent"]
    assert sent == 200 - len(answered)
    # SteerLM 1 had ended before the kill.
    trained = begun(store.root, "align")["0"]
    assert [step for what, step in trained if what == "training begins"] == [0, 0]
    assert len(trained) == 2
