"""Rollouts by a real vLLM beside the training: each batch is by the policy as it is at that moment."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from tests.train.conftest import in_process, save_base, up_to_rm, with_rm
from tests.train.test_online import with_ppo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def base_recipe(
    recipe: Recipe, rated: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """With heads of 32, the smallest that vLLM computes on a CPU."""
    folder = tmp_path_factory.mktemp("wide")
    save_base(folder / "base", heads=2)
    update = {
        "base": recipe.base.model_copy(update={"model": str(folder / "base")}),
        "sft": recipe.sft.model_copy(update={"epochs": 40.0}),
        "hh_sft": recipe.hh_sft.model_copy(update={"epochs": 20.0}),
    }
    return with_rm(recipe.model_copy(update=update), folder, rated)


@pytest.fixture(scope="module")
def after_rm(
    ray_session: None, base_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """A run directory with the checkpoints sft, hh-sft and rm."""
    return up_to_rm(base_recipe, tmp_path_factory.mktemp("after-rm"))


def points(
    after_rm: Store, recipe: Recipe, folder: Path, **align: Any
) -> list[dict[str, Any]]:
    """What each iteration of a training with vLLM has logged."""
    shutil.copytree(after_rm.root, folder)
    settings = {"epochs": 4.0, "learning_rate": 0.01, **align}
    with_vllm = with_ppo(recipe, settings, reset=0.5, engine="vllm")
    context = StageContext(with_vllm, Store(folder), "test", Progress())
    found = in_process(context, "align")["ppo"]
    assert found["heldout_answers"][-1]["kl"] != 0
    return found["by_step"]


def test_the_engine_samples_by_the_policy_of_each_iteration(
    after_rm: Store, base_recipe: Recipe, tmp_path: Path
) -> None:
    by_step = points(after_rm, base_recipe, tmp_path / "run", load_in_4bit=False)
    assert len(by_step) >= 8
    gaps = [point["engine_gap"] for point in by_step]
    # With the weights of an earlier iteration, they would be as far as the policy went.
    assert max(gaps) < 0.005
    assert by_step[-1]["kl"] / by_step[-1]["length"] > 10 * max(gaps)


def test_an_engine_without_the_learners_four_bits_is_corrected_for(
    after_rm: Store, base_recipe: Recipe, tmp_path: Path
) -> None:
    by_step = points(after_rm, base_recipe, tmp_path / "run", load_in_4bit=True)
    assert by_step[0]["engine_gap"] > 0.005
    assert by_step[-1]["kl"] > 0
