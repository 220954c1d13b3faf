"""On Ray's workers: what a killed run leaves is gone on from, several workers train one adapter, failures explain."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from bezoar_ray.data.schema import Sample, sample_table
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import launcher, model_loading, pairs
from bezoar_ray.train.reporting import STATE
from bezoar_ray.train.tokenizer import load_tokenizer
from tests import end_to_end
from tests.train.conftest import run_stage, write_rows

RUN_SFT = """
import signal, sys
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.recipe import Recipe
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import training_stages

signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `bezoar run` has it
with ray_session():
    recipe = Recipe.model_validate_json(open(sys.argv[1]).read())
    training_stages.run(StageContext(recipe, Store(sys.argv[2]), "test", Progress(), stage="sft"))
"""


def changed(recipe: Recipe, **values: Any) -> Recipe:
    return recipe.model_copy(update={"sft": recipe.sft.model_copy(update=values)})


def refuse(job: launcher.Job) -> dict[str, Any]:
    raise RecipeError(f"{job.stage}: no such target")


def break_down(job: launcher.Job) -> dict[str, Any]:
    print("the library's own words")
    raise ValueError("the disk is on fire")


def test_a_stage_runs_on_a_worker_with_its_noise_in_the_log(
    ray_session: None, context: StageContext, capfd: Any
) -> None:
    outcome = run_stage(context, "sft")
    printed = capfd.readouterr()
    assert context.store.exists("checkpoints/sft/merged/model.safetensors")
    assert {"checkpoints/sft/lineage.json", "checkpoints/base/lineage.json"} <= set(
        outcome.files
    )
    assert outcome.summary["train"]["sft"]["steps"] == 4
    assert "'loss'" in context.store.path("logs/sft.log").read_text()
    assert (
        "orca has no accepted rows" in printed.out
        and "'loss'" not in printed.out + printed.err
    )


@pytest.mark.slow
def test_our_own_errors_are_not_tried_again_and_others_name_the_log(
    ray_session: None, context: StageContext
) -> None:
    with pytest.raises(RecipeError, match="sft: no such target"):
        launcher.fit(context, "sft", refuse, [], [])
    once = replace(context, recipe=changed(context.recipe, max_failures=0))
    with pytest.raises(
        BezoarError,
        match=r"training failed: .*the disk is on fire.* More in .*logs/sft.log",
    ):
        launcher.fit(once, "sft", break_down, [], [])
    assert "the library's own words" in context.store.path("logs/sft.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])  # 0 is in test_correctness.py
def test_two_workers_train_one_adapter(
    ray_session: None, context: StageContext, zero_stage: int
) -> None:
    shared = changed(
        context.recipe,
        workers=2,
        zero_stage=zero_stage,
        batch=8,
        load_in_4bit=zero_stage < 3,
    )
    outcome = run_stage(replace(context, recipe=shared), "sft")
    assert outcome.summary["train"]["sft"]["steps"] == 2
    part = outcome.summary["train"]["sft"]
    assert part["by_step"][-1]["loss"] < part["by_step"][0]["loss"]
    tensors = load_file(
        context.store.path("checkpoints/sft/adapter/adapter_model.safetensors")
    )
    assert all(tensor.any() for tensor in tensors.values())


def begun(context: StageContext, **values: Any) -> launcher.Job:
    """As `fit` begins an sft of a changed recipe, and Ray Train after it."""
    changed_recipe = replace(context, recipe=changed(context.recipe, **values))
    job = launcher.Job(
        str(context.store.root), changed_recipe.recipe, "sft", f"run-{len(values)}", ()
    )
    fields = launcher._run_fields(changed_recipe, "sft", [], [])
    launcher._begin_run(changed_recipe, job, fields)
    context.store.replace(f"train/sft/{job.name}/checkpoint/weights", b"")
    return job


def test_a_stop_reaches_the_workers_whatever_the_driver_does_at_that_moment(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage of the bucket while it looks at their progress ends nothing; Ctrl-C in the same look stops them."""
    faults: list[BaseException] = [
        BezoarError("cannot read s3://…"),
        KeyboardInterrupt(),
    ]
    stopped: list[str] = []

    def look(name: str) -> None:
        raise faults.pop(0)

    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(
        launcher, "_stop", lambda context, job, ended: stopped.append(job.stage)
    )
    monkeypatch.setattr(context.store, "read_json", look)
    with pytest.raises(KeyboardInterrupt):
        launcher._watch(
            context,
            launcher.Job(str(context.store.root), context.recipe, "sft", "x", ()),
            Future(),
        )
    assert stopped == ["sft"] and not faults


def test_another_recipe_trains_afresh_and_says_what_differs(
    context: StageContext, capsys: Any
) -> None:
    """What was under way is kept beside it: with its own recipe it goes on."""
    first, other = begun(context), begun(context, epochs=5.0, learning_rate=0.5)
    said = capsys.readouterr().out
    assert (
        "sft trains afresh" in said
        and "epochs was 1.0, is 5.0" in said
        and "learning_rate was 0.01, is 0.5" in said
    )
    assert "seed" not in said and "micro_batch" not in said
    context.store.replace_json("train/sft/progress.json", {})
    begun(context)
    assert launcher._runs(first) == {
        first.name,
        other.name,
    } and not context.store.exists("train/sft/progress.json")
    assert capsys.readouterr().out == ""


def test_a_training_that_has_ended_is_not_spoken_of(
    context: StageContext, capsys: Any
) -> None:
    first = begun(context)
    record = f"train/sft/{first.name}.json"
    context.store.replace_json(
        record, context.store.read_json(record) | {launcher._ENDED: True}
    )
    begun(context, epochs=5.0)
    assert capsys.readouterr().out == ""


def command(recipe: Recipe, store: Store, workers: int) -> list[str]:
    """sft of a recipe in a run directory, on a Ray of its own: 400 steps, half of them on each data set."""
    path = store.path("recipe.json")
    long = changed(
        recipe, epochs=100, learning_rate=1e-3, checkpoint_every=50, workers=workers
    )
    path.write_text(long.model_dump_json())
    return [sys.executable, "-c", RUN_SFT, str(path), str(store.root)]


@pytest.fixture(scope="module")
def undisturbed(
    recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], dict[str, torch.Tensor]]:
    """The adapter that so many workers train if nothing happens to them."""

    @cache
    def trained_by(workers: int) -> dict[str, torch.Tensor]:
        store = Store(tmp_path_factory.mktemp("undisturbed"))
        write_rows(store, "lamini", "evol_instruct")
        assert (
            subprocess.run(
                command(recipe, store, workers), stdout=subprocess.DEVNULL, timeout=800
            ).returncode
            == 0
        )
        return adapter(store)

    return trained_by


def adapter(store: Store) -> dict[str, torch.Tensor]:
    return load_file(store.path("checkpoints/sft/adapter/adapter_model.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("whom", "workers"),
    [
        ("worker", 1),
        ("worker", 2),
        ("driver", 1),
        ("everything", 1),
        ("nobody: it is asked to stop", 1),
    ],
)
def test_training_that_was_killed_ends_with_the_adapter_of_one_that_was_not(
    context: StageContext,
    undisturbed: Callable[[int], dict[str, torch.Tensor]],
    whom: str,
    workers: int,
) -> None:
    """Killed in the second data set. The same to the bit: every step has seen its own rows, once, in their order."""
    asked = command(context.recipe, context.store, workers)
    first = subprocess.Popen(asked, stdout=subprocess.DEVNULL)
    until(lambda: at(context) >= 250 or first.poll() is not None)
    assert first.poll() is None
    if whom == "worker":  # one of them: Ray Train starts all again
        started = psutil.Process(first.pid).children(recursive=True)
        next(
            process
            for process in started
            if "RayTrainWorker" in "".join(process.cmdline())
        ).kill()
        assert first.wait(timeout=800) == 0
    else:
        if whom == "everything":
            kill(first)
        elif whom == "driver":  # Ray ends what it had started
            first.kill()
            first.wait()
        else:
            began = time.monotonic()
            first.terminate()
            assert first.wait(timeout=100) != 0 and time.monotonic() - began < 30
        assert (
            subprocess.run(asked, stdout=subprocess.DEVNULL, timeout=800).returncode
            == 0
        )
    starts = end_to_end.begun(context.store.root, "sft")
    assert len(starts) == workers
    for first, *later in starts.values():
        assert first == ("training begins", 0) and {what for what, _ in later} == {
            "training resumes"
        }
        assert all(step >= 250 - 50 for _, step in later)
    by_step = context.store.read_json("train/sft/result.json")["sft"]["by_step"]
    steps = [point["step"] for point in by_step]
    assert steps == sorted(set(steps)) and steps[-1] == 400
    assert {point["dataset"] for point in by_step} == {"lamini", "evol_instruct"}
    found = adapter(context.store)
    assert all(
        torch.equal(tensor, found[name])
        for name, tensor in undisturbed(workers).items()
    )


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_at_the_last_good_checkpoint(
    ray_session: None, context: StageContext, tmp_path: Path
) -> None:
    """A base whose embedding of a rare character is broken, and one row that has it."""
    model, tokenizer = (
        model_loading.load(context.recipe.base),
        load_tokenizer(context.recipe),
    )
    with torch.no_grad():
        model.get_input_embeddings().weight[
            tokenizer("¥", add_special_tokens=False)["input_ids"][-1]
        ] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    rare = Sample(
        "rare", "evol_instruct", "op", instruction="What is ¥?", response="A coin."
    )
    context.store.replace_table(
        "data/evol_instruct/accepted/part-1.parquet", sample_table([rare])
    )
    base = context.recipe.base.model_copy(update={"model": str(tmp_path / "broken")})
    recipe = changed(context.recipe, checkpoint_every=1).model_copy(
        update={"base": base}
    )
    with pytest.raises(
        BezoarError,
        match=r"NaN or inf at step \d, in rows .*rare.* of evol_instruct",
    ) as stopped:
        run_stage(replace(context, recipe=recipe), "sft")
    step = int(re.search(r"at step (\d)", str(stopped.value))[1])
    (kept,) = (
        file
        for file in context.store.list("train/sft")
        if file.endswith(f"/{STATE}") and "work" not in file
    )
    assert [
        point["step"] for point in context.store.read_json(kept)["history"]
    ] == list(range(1, step)) and step > 2
    weights = load_file(context.store.path(kept).parent / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_workers_share_one_reference_that_was_asked_ahead(
    ray_session: None,
    trained: tuple[Store, dict[str, Any]],
    recipe: Recipe,
    tmp_path: Path,
    method: str,
) -> None:
    shutil.copytree(
        trained[0].root, tmp_path / "run", ignore=shutil.ignore_patterns("dpo")
    )
    two = recipe.align.model_copy(update={"method": method, "workers": 2, "epochs": 2})
    context = StageContext(
        recipe.model_copy(update={"align": two}),
        Store(tmp_path / "run"),
        "test",
        Progress(),
    )
    pairs.ensure(context)
    found = run_stage(context, "align").summary["train"][method]
    assert found["steps"] == 10 and found["loss_last"] < found["loss_first"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_preference_stage_that_was_stopped_ends_with_the_adapter_of_one_that_was_not(
    ray_session: None,
    trained: tuple[Store, dict[str, Any]],
    recipe: Recipe,
    tmp_path: Path,
    method: str,
) -> None:
    """Their checkpoints hold the frozen reference, too; what goes on is the trained adapter."""
    part = recipe.align.model_copy(
        update={"method": method, "epochs": 30, "checkpoint_every": 1000}
    )
    contexts = []
    for name in ("calm", "stopped"):
        shutil.copytree(
            trained[0].root, tmp_path / name, ignore=shutil.ignore_patterns("dpo")
        )
        store = Store(tmp_path / name)
        contexts.append(
            StageContext(
                recipe.model_copy(update={"align": part}), store, "test", Progress()
            )
        )
        pairs.ensure(contexts[-1])
    calm, stopped = contexts
    run_stage(calm, "align")
    threading.Thread(target=stop_under_way, args=(stopped.store,), daemon=True).start()
    with pytest.raises(BezoarError, match="stopped, with a last checkpoint"):
        run_stage(stopped, "align")
    at_stop = Store(stopped.store.root).read_json("train/dpo/progress.json")
    stopped.store.remove("train/dpo/stop")
    assert (
        run_stage(stopped, "align").summary["train"][method]["steps"] > at_stop["step"]
    )
    weights = [
        load_file(
            found.store.path(f"checkpoints/{method}/adapter/adapter_model.safetensors")
        )
        for found in contexts
    ]
    assert all(
        torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()
    )


def stop_under_way(store: Store) -> None:
    """As a driver does that is being stopped."""
    until(
        lambda: (store.read_json("train/dpo/progress.json") or {"step": 0})["step"] > 3
    )
    store.replace("train/dpo/stop", b"")


def at(context: StageContext) -> int:
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
    family = [
        *psutil.Process(process.pid).children(recursive=True),
        psutil.Process(process.pid),
    ]
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
    process.wait()
