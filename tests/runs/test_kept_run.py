"""A run directory made when the stage `align` was called `dpo` still works.

kept_run.tar.gz is a small run of the recipe `tiny` at commit d59ecb9. Its weights,
tokenizers, report and cards are empty files.
"""

import tarfile
from pathlib import Path

import pytest

from bezoar_ray import cli
from bezoar_ray.recipe import load_recipe
from bezoar_ray.runs import manifest
from bezoar_ray.runs.manifest import exists, fingerprint, forget, load
from bezoar_ray.serve.arguments import modes
from bezoar_ray.stages import STAGES
from bezoar_ray.store import Store

ARCHIVE = Path(__file__).with_name("kept_run.tar.gz")
WORLD = "948101d844d3"
"""The fingerprint of the embedded world that the run used."""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kept run directory, with the world that it was made with."""
    monkeypatch.setattr(manifest, "world_fingerprint", lambda: WORLD)
    folder = tmp_path / "run"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_its_recipe_loads_and_every_fingerprint_is_the_same(kept: Path) -> None:
    recipe, store = load_recipe(str(kept / "recipe.yaml")), Store(kept)
    done = [stage for stage in STAGES if exists(store, stage)]
    assert len(done) == 7
    for stage in done:
        assert load(store, stage).fingerprint == fingerprint(recipe, stage), stage


@pytest.mark.parametrize("stages", [None, "dpo", "align,evaluate"])
def test_the_same_command_finds_every_stage_done(
    kept: Path, stages: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["--stages", stages] if stages else []
    recipe = str(kept / "recipe.yaml")
    assert cli.main(["run", recipe, "--run-dir", str(kept), *only]) == 0
    names = load_recipe(recipe).stages if stages is None else ("align",)
    output = capsys.readouterr().out
    for name in names:
        assert f"{name:<9} already done" in output


def test_status_report_and_serving_know_its_checkpoints(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", str(kept)]) == 0
    assert "dpo       done" in capsys.readouterr().out
    assert cli.main(["report", str(kept)]) == 0
    page = (kept / "report.html").read_text()
    assert "align" in page and "dpo" in page
    assert "DPO" in (kept / "cards/dpo.md").read_text()
    served = modes(load_recipe(str(kept / "recipe.yaml")), Store(kept))
    assert list(served) == ["base", "sft", "hh-sft", "dpo"]


def test_another_method_replaces_its_checkpoint(kept: Path) -> None:
    store = Store(kept)
    forget(store, "align")
    assert not exists(store, "align") and not exists(store, "evaluate")
    assert not (kept / "manifests/dpo.json").exists()
    assert not store.list("checkpoints/dpo") and store.list("checkpoints/hh-sft")
