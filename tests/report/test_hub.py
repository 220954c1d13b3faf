"""What would go to the hub, and what a user is told when it cannot."""

import pytest

from bezoar_ray.cli import main
from bezoar_ray.data.schema import Sample
from bezoar_ray.recipe import load_recipe
from bezoar_ray.store import Store
from tests.rows_on_disk import write_samples


@pytest.fixture
def run(tmp_path):
    """A run directory with one checkpoint, its adapters, accepted rows and their cards."""
    store = Store(tmp_path / "run")
    store.replace("recipe.yaml", load_recipe("tiny").model_dump_json())
    for kind in ("merged", "adapter", "joined"):
        store.replace(f"checkpoints/dpo/{kind}/model.safetensors", kind)
    store.replace("checkpoints/dpo/merged/config.json", "{}")
    write_samples(
        store, "lamini", "accepted", [Sample("1", "lamini", "x", status="accepted")]
    )
    for card in ("dpo", "dataset"):
        store.replace(f"cards/{card}.md", f"# {card}")
    return store


def test_a_dry_run_names_every_repository_and_touches_none(run, capsys):
    assert main(["push", str(run.root), "me", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "model me/tiny-dpo",
        "model me/tiny-dpo-adapter",
        "dataset me/tiny-dataset",
    ]
    assert "3 files" in lines[0] and "2 files" in lines[1]


def test_a_reward_model_goes_with_its_scalar_form(run):
    from bezoar_ray.report.hub import uploads

    for kind in ("merged", "adapter", "scalar"):
        run.replace(f"checkpoints/rm/{kind}/model.safetensors", kind)
    run.replace("cards/rm.md", "# rm")
    model, scalar = uploads(load_recipe("tiny-rm"), run, "me", ["rm"])
    assert model.repository == "me/tiny-rm-rm"
    assert scalar.repository == "me/tiny-rm-rm-scalar"
    assert scalar.files["model.safetensors"].read_text() == "scalar"
    assert scalar.files["README.md"].read_text() == "# rm"


def test_the_card_is_the_readme(run):
    from bezoar_ray.report.hub import uploads

    merged, adapter, rows = uploads(load_recipe("tiny"), run, "me")
    assert merged.files["README.md"].read_text() == "# dpo"
    assert set(merged.files) == {"model.safetensors", "config.json", "README.md"}
    assert (
        adapter.files["model.safetensors"].read_text() == "joined"
    )  # it fits the base that the card names
    assert "README.md" in rows.files and any(
        name.startswith("lamini/") for name in rows.files
    )


def test_a_part_that_is_not_there_is_named(run, capsys):
    assert main(["push", str(run.root), "me", "--only", "sft", "--dry-run"]) == 2
    assert "has no files of sft" in capsys.readouterr().err
    assert main(["push", str(run.root), "me", "--only", "base"]) == 2
    assert (
        "unknown part. Use one of sft, hh-sft, rm, dpo, kto, orpo, asft, ppo, steer, dataset"
        in capsys.readouterr().err
    )


def test_a_missing_card_is_named_with_the_remedy(run, capsys):
    run.remove("cards/dpo.md")
    assert main(["push", str(run.root), "me", "--dry-run"]) == 2
    assert "cards/dpo.md: missing. `bezoar report" in capsys.readouterr().err


def test_a_hub_that_is_out_of_reach_is_one_line(run, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run.root), "me", "--only", "dataset"]) == 3
    assert "me/tiny-dataset: " in capsys.readouterr().err
