"""Every packaged recipe that uses GPUs is built into its Ray Data graph, Serve app and trainers, on logical GPUs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bezoar_ray.recipe import load_recipe, recipe_names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RECIPES = [name for name in recipe_names() if load_recipe(name).serve.num_gpus]


@pytest.fixture(scope="module")
def built() -> dict[str, dict[str, Any]]:
    """What engines and trainers were given, by recipe."""
    command = [sys.executable, "-m", "tests.recorded", *RECIPES]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = [
        json.loads(line)
        for line in done.stdout.splitlines()
        if line.startswith('{"recipe"')
    ]
    return {line["recipe"]: line for line in lines}


@pytest.mark.parametrize("name", RECIPES)
def test_teachers_run_on_the_gpus_that_the_recipe_gives_them(
    built: dict[str, Any], name: str
) -> None:
    recipe = load_recipe(name)
    (teacher,), rows = recipe.teachers, built[name]["rows"]
    engines = [line for line in built[name]["records"] if line["kind"] == "engine"]
    assert rows == 32
    assert all(built[name]["asked"][judge.model] >= rows for judge in recipe.judges)
    assert (built[name]["asked"].get(teacher.model, 0) > rows) == bool(teacher.base_url)
    assert len(engines) in (
        [0] if teacher.base_url else range(1, teacher.actors + 1)
    )  # each starts with its first row
    gpus = [gpu for line in engines for gpu in line["gpus"]]
    assert len(gpus) == len(set(gpus)) == teacher.num_gpus * len(engines)
    for line in engines:
        assert line["model"] == teacher.model
        assert (
            teacher.engine.items() <= line["engine"].items()
            and "enforce_eager" not in line["engine"]
        )


@pytest.mark.parametrize("name", RECIPES)
def test_the_endpoints_engine_is_told_what_the_recipe_says(
    built: dict[str, Any], name: str
) -> None:
    recipe = load_recipe(name)
    (replica,) = [line for line in built[name]["records"] if line["kind"] == "replica"]
    arguments = replica["arguments"]
    assert len(replica["gpus"]) == recipe.serve.num_gpus == 1
    assert arguments[arguments.index("--model") + 1] == recipe.base.model
    assert arguments[arguments.index("--gpu-memory-utilization") + 1] == "0.9"
    assert "--enable-lora" in arguments and "--enforce-eager" not in arguments


@pytest.mark.parametrize("name", RECIPES)
def test_trainers_ask_for_a_gpu_for_each_worker(
    built: dict[str, Any], name: str
) -> None:
    recipe = load_recipe(name)
    stages = [given["stage"] for given in built[name]["trainers"]]
    assert stages == list(recipe.trained)
    for given in built[name]["trainers"]:
        part = recipe.training(given["stage"])
        assert given["use_gpu"] and given["backend"] == "nccl"
        assert (given["accelerator_type"], given["labels"] or {}) == (
            part.accelerator_type,
            part.node_labels,
        )
        assert (
            given["bundles"]
            == [{"CPU": part.cpus_per_worker, "GPU": 1.0}] * part.workers
        )
