"""On Ray's workers: what a killed run leaves is gone on from, several workers train one adapter, failures explain."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import Recipe
from bezoar_ray.stage import Context
from bezoar_ray.train import sft, worker

RUN_SFT = """
import sys
from bezoar_ray.cluster import ray_session
from bezoar_ray.progress import Progress
from bezoar_ray.recipe import Recipe
from bezoar_ray.stage import Context
from bezoar_ray.store import Store
from bezoar_ray.train import sft

with ray_session():
    sft.run(Context(Recipe.model_validate_json(open(sys.argv[1]).read()), Store(sys.argv[2]), "test", Progress()))
"""


def changed(recipe: Recipe, **values: Any) -> Recipe:
    return recipe.model_copy(update={"sft": recipe.sft.model_copy(update=values)})


def refuse(job: worker.Job) -> dict[str, Any]:
    raise RecipeError(f"{job.stage}: no such target")


def break_down(job: worker.Job) -> dict[str, Any]:
    print("the library's own words")
    raise ValueError("the disk is on fire")


def test_a_stage_runs_on_a_worker_with_its_noise_in_the_log(ray_session: None, context: Context, capfd: Any) -> None:
    outcome = sft.run(context)
    printed = capfd.readouterr()
    assert context.store.exists("checkpoints/sft/merged/model.safetensors")
    assert {"checkpoints/sft/lineage.json", "checkpoints/base/lineage.json"} <= set(outcome.files)
    assert outcome.summary["train"]["sft"]["steps"] == 4
    assert "'loss'" in context.store.path("logs/sft.log").read_text()
    assert "orca has no accepted rows" in printed.out and "'loss'" not in printed.out + printed.err


@pytest.mark.slow
def test_our_own_errors_are_not_tried_again_and_others_name_the_log(ray_session: None, context: Context) -> None:
    with pytest.raises(RecipeError, match="sft: no such target"):
        worker.fit(context, "sft", refuse, [])
    once = replace(context, recipe=changed(context.recipe, max_failures=0))
    with pytest.raises(BezoarError, match=r"training failed: .*the disk is on fire.* More in .*logs/sft.log"):
        worker.fit(once, "sft", break_down, [])
    assert "the library's own words" in context.store.path("logs/sft.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_workers_train_one_adapter(ray_session: None, context: Context, zero_stage: int) -> None:
    shared = changed(context.recipe, workers=2, zero_stage=zero_stage, batch=8, load_in_4bit=zero_stage < 3)
    from safetensors.torch import load_file

    outcome = sft.run(replace(context, recipe=shared))
    assert outcome.summary["train"]["sft"]["steps"] == 2
    part = outcome.summary["train"]["sft"]
    assert part["by_step"][-1]["loss"] < part["by_step"][0]["loss"]
    tensors = load_file(context.store.path("checkpoints/sft/adapter/adapter_model.safetensors"))
    assert all(tensor.any() for tensor in tensors.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_goes_on_from_its_last_checkpoint(context: Context, tmp_path: Path) -> None:
    """Killed in the second data set: the first is not trained again, and the account has every step once."""
    long = changed(context.recipe, epochs=100, learning_rate=1e-3, checkpoint_every=50)
    (tmp_path / "recipe.json").write_text(long.model_dump_json())
    command = [sys.executable, "-c", RUN_SFT, str(tmp_path / "recipe.json"), str(context.store.root)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: at(context) >= 250 or first.poll() is not None)
    assert first.poll() is None
    kill(first)
    log = context.store.path("logs/sft.log")
    log.unlink()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=800).returncode == 0
    losses = {line for line in log.read_text().splitlines() if line.startswith("{'loss'")}  # some are printed twice
    by_step = context.store.read_json("train/sft/result.json")["sft"]["by_step"]
    steps = [point["step"] for point in by_step]
    assert steps == sorted(set(steps)) and steps[-1] == 400
    assert {point["dataset"] for point in by_step} == {"lamini", "evol_instruct"}
    assert 0 < len(losses) < len(by_step)


def at(context: Context) -> int:
    progress = context.store.path("train/sft/progress.json")
    return json.loads(progress.read_text())["step"] if progress.exists() else 0


def until(reached: Any) -> None:
    """Wait, on a busy machine too."""
    for _ in range(8000):
        if reached():
            return
        time.sleep(0.1)
    raise AssertionError("not reached in 13 minutes")


def kill(process: subprocess.Popen) -> None:
    """The driver and everything it started, at once."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
    process.wait()
