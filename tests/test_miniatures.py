"""The big recipes go through every stage with random-weight miniatures of their real models."""

from pathlib import Path

import pytest

from bezoar_ray.recipe import CHECKPOINTS
from tests import miniatures
from tests.end_to_end import Command, summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1300)]

# What a laptop lacks is replaced; architecture, prompt wrapper, chat template, LoRA targets and NF4 stay the recipe's.
SMALL = [
    "teacher.revision=null", "teacher.actors=1", "teacher.num_gpus=0", "teacher.engine={max_model_len: 2048}",
    "teacher.max_tokens=256", "judges=[{model: tiny-judge, temperature: 0.0}]", "base.revision=null",
    "teacher.dtype=float32", "serve.dtype=float32",  # CPUs without AVX-512 are slow at bfloat16
    "seeds={dolly: [{source: tiny}], flan: [{source: tiny}], hh_rlhf: [{source: tiny, limit: 120}]}",
    "generate.lamini={calls: 2, per_call: 3}", "generate.evol_instruct={seeds: 8, epochs: 2}",
    "generate.orca={rows: 24}", "filter.accept_rating=1",  # a random model's rows are as bad as rows can be
    *(f"{stage}.{field}" for stage in ("sft", "hh_sft", "align")
      for field in ("workers=1", "gpus_per_worker=0", "batch=8", "epochs=1")),
    "hh_sft.limit=32", "align.limit=32", "serve.num_gpus=0", "serve.engine={max_model_len: 2048}",
    "evaluate.harness.tasks=[{task: tiny_choice, metric: acc, limit: 8}]", "evaluate.harness.include_path=tiny",
    "evaluate.harness.groups=[]",
    "evaluate.mt_bench={limit: 2, max_tokens: 64}", "evaluate.heldout_pairs=10",
]  # fmt: skip
MODELS = {
    "openbezoar-3b": (miniatures.falcon, miniatures.llama),
    "modern": (miniatures.qwen3, miniatures.qwen3),
}


@pytest.fixture(scope="module")
def running(tiny_world, tmp_path_factory) -> dict[str, tuple[Path, Command]]:
    """Both recipes' runs: at the same time, as either leaves a core idle while it starts engines and workers."""
    found = {}
    for recipe, (teacher, base) in MODELS.items():
        folder = tmp_path_factory.mktemp(recipe)
        models = [f"teacher.model={teacher(folder / 'teacher')}", f"base.model={base(folder / 'base')}"]
        found[recipe] = folder / "run", Command(folder / "run", recipe=recipe, sets=[*SMALL, *models])
    return found


@pytest.mark.parametrize("recipe", MODELS)
def test_a_big_recipe_goes_through_every_stage(recipe, running):
    run_dir, command = running[recipe]
    code, output = command.wait(timeout=1200)
    assert code == 0, output
    found = summary(run_dir)
    assert {stage["status"] for stage in found["stages"].values()} == {"done"}
    assert found["data"]["orca"]["accepted"] > 0
    assert all(found["train"][name]["steps"] > 0 for name in CHECKPOINTS[1:])
    assert found["eval"]["mt_bench"].keys() == found["eval"]["harness"].keys() == set(CHECKPOINTS)
