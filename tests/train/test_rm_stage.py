"""The stage rm on small rows: what it trains on, what it leaves, and what does not change it."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store, digest
from bezoar_ray.train import pairs, rated_rows
from tests.end_to_end import begun
from tests.train.conftest import in_process, with_rm, write_rows
from tests.train.stage_process import command
from tests.train.test_launcher import kill, until

FOLDER = layout.checkpoint("rm").folder


@pytest.fixture(scope="module")
def after_sft(
    ray_session: None, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """A run directory with the checkpoint sft."""
    store = Store(tmp_path_factory.mktemp("after-sft"))
    write_rows(store, "lamini")
    context = StageContext(recipe, store, "test", Progress())
    pairs.ensure(context)
    in_process(context, "sft")
    return store


def trained(store: Store, recipe: Recipe, name: str) -> dict[str, Any]:
    """The metrics of the stage."""
    context = StageContext(recipe, store, "test", Progress())
    return in_process(context, "rm", name)["rm"]


def test_it_learns_the_ratings_and_leaves_three_models(
    after_sft: Store, recipe: Recipe, rated: dict[str, Any], tmp_path: Path
) -> None:
    base = Path(recipe.base.model)
    base_before = digest(base)
    sft_before = after_sft.digest(layout.checkpoint("sft").folder)
    small = with_rm(recipe, tmp_path, rated, epochs=6)
    found = trained(after_sft, small, "learns")
    assert found["loss_last"] < found["loss_first"]
    assert found["pairs"]["ratings"] == 1.0
    assert found["heldout"]["correctness"]["r"] > 0.9
    assert found["left_out_because"] == {
        "without a preference": pytest.approx(5, abs=1)
    }
    for folder in ("adapter", "merged", "scalar"):
        assert after_sft.exists(f"{FOLDER}/{folder}")
    lineage = after_sft.read_json(layout.checkpoint("rm").lineage)
    assert lineage["parent"] == "../sft"
    assert lineage["weights"] == small.rm.weights  # type: ignore[union-attr]
    assert after_sft.digest(layout.checkpoint("sft").folder) == sft_before
    assert digest(base) == base_before

    import transformers

    scalar = transformers.AutoModelForSequenceClassification.from_pretrained(
        after_sft.path(f"{FOLDER}/scalar")
    )
    assert scalar.config.num_labels == 1


def test_no_heldout_prompt_is_trained_on_in_either_data_set(
    after_sft: Store, recipe: Recipe, rated: dict[str, Any], tmp_path: Path
) -> None:
    small = with_rm(recipe, tmp_path, rated)
    context = StageContext(small, Store(tmp_path / "run"), "test", Progress())
    rated_rows.ensure(context)
    heldout = rated_rows.read_heldout(context.store)
    prompts = {row.prompt[0]["content"] for row in heldout.ratings}
    assert prompts == {row.prompt[0]["content"] for row in heldout.preferences}
    assert len(prompts) == 4
    for kind in ("ratings", "preferences"):
        path = context.store.path(layout.rated(kind, "train"))
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        assert rows
        assert not prompts & {row["prompt"][0]["content"] for row in rows}


def test_a_row_that_fills_the_context_is_left_out_and_counted(
    after_sft: Store, recipe: Recipe, rated: dict[str, Any], tmp_path: Path
) -> None:
    longer = [dict(row) for row in rated["ratings"]]
    longer += [{**longer[-1], "prompt": f"{n} " * 400} for n in range(8)]
    rows = {**rated, "ratings": longer}
    found = trained(after_sft, with_rm(recipe, tmp_path, rows), "long")
    assert found["left_out_because"]["longer than max_length"] in range(1, 9)


def test_without_rows_it_says_so(
    after_sft: Store, recipe: Recipe, rated: dict[str, Any], tmp_path: Path
) -> None:
    from bezoar_ray.train import training_stages

    small = with_rm(recipe, tmp_path, rated)
    seeds = small.seeds.model_copy(update={"helpsteer": (), "preferences": ()})
    empty = small.model_copy(update={"seeds": seeds})
    context = StageContext(empty, after_sft, "test", Progress())
    with pytest.raises(BezoarError, match=r"rm: .*seeds.helpsteer"):
        training_stages.run(replace(context, stage="rm"))


def copy_of(store: Store, folder: Path) -> Store:
    shutil.copytree(store.root, folder)
    copied = Store(folder)
    copied.remove("train/rm")
    return copied


def adapter(store: Store) -> dict[str, torch.Tensor]:
    return load_file(store.path(f"{FOLDER}/adapter/adapter_model.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_resumed_it_ends_with_the_same_adapter(
    after_sft: Store, recipe: Recipe, rated: dict[str, Any], tmp_path: Path
) -> None:
    """To the bit, adapter and head alike; killed in its second data set."""
    small = with_rm(recipe, tmp_path, rated, epochs=30, checkpoint_every=10)
    undisturbed = copy_of(after_sft, tmp_path / "undisturbed")
    run = command(undisturbed, small, "rm")
    subprocess.run(run, stdout=subprocess.DEVNULL, check=True)
    by_step = undisturbed.read_json("train/rm/result.json")["rm"]["by_step"]
    preferences = [point for point in by_step if point["dataset"] == "preferences"]
    wanted = preferences[0]["step"] + 20

    disturbed = copy_of(after_sft, tmp_path / "disturbed")
    run = command(disturbed, small, "rm")
    first = subprocess.Popen(run, stdout=subprocess.DEVNULL)

    def step() -> int:
        return (disturbed.read_json("train/rm/progress.json") or {"step": 0})["step"]

    until(lambda: step() >= wanted or first.poll() is not None)
    assert first.poll() is None
    kill(first)
    subprocess.run(run, stdout=subprocess.DEVNULL, check=True)
    ((_, *later),) = begun(disturbed.root, "rm").values()
    assert [what for what, _ in later] == ["training resumes"]

    weights = adapter(undisturbed)
    found = adapter(disturbed)
    assert any("score" in name for name in weights)
    assert weights.keys() == found.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, found[name]), name
