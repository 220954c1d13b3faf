"""Where there is a GPU, Ray's workers train on it as the recipe says; those that are given none stay off it."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import launcher, model_loading, pairs
from tests.train.conftest import run_stage, write_rows
from tests.train.test_launcher import changed, stop_under_way

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
    pytest.mark.slow,
]
IDS = torch.arange(40).reshape(2, 20) * 7 % 300


def on_gpu(recipe: Recipe, **values: Any) -> Recipe:
    """The recipe in bfloat16, with a GPU for each worker."""
    gpu = {
        name: getattr(recipe, name).model_copy(update={"gpus_per_worker": 1.0})
        for name in ("hh_sft", "align")
    }
    base = recipe.base.model_copy(update={"dtype": "bfloat16"})
    return changed(
        recipe.model_copy(update={"base": base, **gpu}), gpus_per_worker=1.0, **values
    )


@pytest.fixture(scope="module")
def run(
    ray_session: None, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageContext, dict[str, Any]]:
    """All three stages on Ray's workers, and their summaries."""
    context = StageContext(
        on_gpu(recipe), Store(tmp_path_factory.mktemp("gpu")), "test", Progress()
    )
    write_rows(context.store, "lamini", "orca", "evol_instruct")
    pairs.ensure(context)
    found: dict[str, Any] = {}
    for stage in ("sft", "hh-sft", "align"):
        found |= run_stage(context, stage).summary["train"]
    return context, found


def what_is_trained_on(job: launcher.Job) -> dict[str, Any]:
    from bitsandbytes.nn import Linear4bit

    model = model_loading.for_training(job)
    quantised = sum(isinstance(layer, Linear4bit) for layer in model.modules())
    return {
        "device": model.device.type,
        "quantised": quantised,
        "dtype": str(model.dtype),
    }


def test_three_stages_leave_their_checkpoints(
    run: tuple[StageContext, dict[str, Any]],
) -> None:
    context, found = run
    assert {found[stage]["steps"] for stage in ("sft", "hh-sft", "dpo")} == {5, 6}
    assert found["sft"]["loss_last"] < found["sft"]["loss_first"]
    config = context.store.read_json("checkpoints/dpo/merged/config.json")
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config


@pytest.mark.parametrize("name", ["sft", "hh-sft", "dpo"])
def test_joined_on_the_base_is_the_merged_chain(
    run: tuple[StageContext, dict[str, Any]], name: str
) -> None:
    context, there = run[0], {"dtype": "float32", "device_map": {"": "cuda"}}
    folder = context.store.path(f"checkpoints/{name}")
    merged = model_loading.load(context.recipe.base, str(folder / "merged"), **there)
    joined = model_loading.with_adapter(
        model_loading.load(context.recipe.base, **there), str(folder / "joined")
    )
    with torch.inference_mode():
        sides = [model.eval()(IDS.to("cuda")).logits for model in (merged, joined)]
    assert (sides[0] - sides[1]).abs().max() < 0.02 * sides[
        0
    ].abs().max()  # merged is rounded to bfloat16


@pytest.mark.parametrize(
    ("gpus", "device", "dtype"), [(1.0, "cuda", "bfloat16"), (0.0, "cpu", None)]
)
def test_a_worker_computes_where_the_recipe_says(
    ray_session: None,
    context: StageContext,
    gpus: float,
    device: str,
    dtype: str | None,
) -> None:
    recipe = changed(on_gpu(context.recipe), gpus_per_worker=gpus)
    found = launcher.fit(
        replace(context, recipe=recipe), "sft", what_is_trained_on, [], []
    )
    assert found["device"] == device and found["quantised"] == 14
    assert dtype is None or found["dtype"] == f"torch.{dtype}"


def test_a_worker_without_a_gpu_trains_beside_one(
    ray_session: None, context: StageContext
) -> None:
    outcome = run_stage(context, "sft")
    assert outcome.summary["train"]["sft"]["steps"] == 4


def test_a_stage_that_was_stopped_ends_with_the_adapter_of_one_that_was_not(
    run: tuple[StageContext, dict[str, Any]], tmp_path: Path
) -> None:
    context = run[0]
    align = context.recipe.align.model_copy(
        update={"epochs": 30, "checkpoint_every": 1000}
    )
    contexts = []
    for name in ("calm", "stopped"):
        shutil.copytree(
            context.store.root, tmp_path / name, ignore=shutil.ignore_patterns("dpo")
        )
        recipe = context.recipe.model_copy(update={"align": align})
        contexts.append(
            StageContext(recipe, Store(tmp_path / name), "test", Progress())
        )
    calm, stopped = contexts
    run_stage(calm, "align")
    threading.Thread(target=stop_under_way, args=(stopped.store,), daemon=True).start()
    with pytest.raises(BezoarError, match="stopped, with a last checkpoint"):
        run_stage(stopped, "align")
    stopped.store.remove("train/dpo/stop")
    run_stage(stopped, "align")
    weights = [
        load_file(found.store.path("checkpoints/dpo/adapter/adapter_model.safetensors"))
        for found in contexts
    ]
    apart = max(
        float((tensor - weights[1][name]).abs().max())
        for name, tensor in weights[0].items()
    )
    print(f"\nadapters {apart:.1e} apart at most")
    assert apart < 1e-4


def test_a_pass_that_does_not_fit_is_made_smaller(
    ray_session: None, context: StageContext
) -> None:
    many = changed(on_gpu(context.recipe), batch=2**20, micro_batch=2**20)
    found = run_stage(replace(context, recipe=many), "sft").summary["train"]["sft"]
    rows = int(found["passes"]["size"].split()[0].replace(",", ""))
    assert found["steps"] > 0 and 0 < rows < 2**20
    assert any(
        "does not fit into memory" in reason for reason in found["passes"]["because"]
    )
