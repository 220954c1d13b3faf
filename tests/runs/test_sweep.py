"""A grid of recipes shares what it can, ends with a table, and goes on where it was stopped."""

import os

import pytest

from bezoar_ray.cli import main
from bezoar_ray.errors import RecipeError
from bezoar_ray.runs.manifest import StageManifest, fingerprint, save
from bezoar_ray.runs.sweep import _max_concurrent_trials, report, share, trials
from bezoar_ray.store import Store
from bezoar_ray.train import heldout

PARAMETERS = ["align.beta=0.1,0.5", "align.learning_rate=1e-4,1e-5"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run")


def test_parameters_make_a_grid_of_run_directories(store):
    found = trials("tiny", ["seed=3"], PARAMETERS, store)
    assert [(t.recipe.align.beta, t.recipe.align.learning_rate) for t in found] == [
        (0.1, 1e-4),
        (0.1, 1e-5),
        (0.5, 1e-4),
        (0.5, 1e-5),
    ]
    assert {t.recipe.seed for t in found} == {3} and len(
        {t.store.root for t in found}
    ) == 4


def test_a_parameter_without_values_is_named(store):
    with pytest.raises(RecipeError, match="--param 'align.beta='"):
        trials("tiny", [], ["align.beta="], store)


def test_a_trial_has_the_files_of_the_stages_that_its_parameter_leaves_alone(store):
    trial, *_ = trials("tiny", [], ["align.beta=0.1,0.5"], store)
    for stage in ("generate", "filter", "sft", "hh-sft", "align"):
        store.replace(f"{stage}.bin", stage)
        mark = fingerprint(trial.recipe, stage) if stage != "align" else "another"
        save(store, stage, StageManifest(mark, 1.0, [f"{stage}.bin"]))
    store.replace("train/data/pairs.arrow", "tokens")
    share(store, trial)
    there = trial.store.list("")
    assert {
        "generate.bin",
        "hh-sft.bin",
        "manifests/hh-sft.json",
        "train/data/pairs.arrow",
    } <= set(there)
    assert "dpo.bin" not in there
    assert os.path.samefile(store.path("sft.bin"), trial.store.path("sft.bin"))


@pytest.mark.parametrize(
    ("offers", "gpus", "room"),
    [
        ({"CPU": 2}, 0, 1),
        ({"CPU": 9}, 0, 4),
        ({"CPU": 64, "GPU": 4}, 1, 2),
        ({"CPU": 1}, 0, 1),
    ],
)
def test_as_many_trials_at_a_time_as_the_cluster_has_room_for(
    store, monkeypatch, offers, gpus, room
):
    """Each trains with two workers of one CPU."""
    monkeypatch.setenv("RAY_ADDRESS", "a cluster's")
    monkeypatch.setattr("ray.cluster_resources", lambda: offers)
    found = trials(
        "tiny", [f"align.gpus_per_worker={gpus}"], ["align.beta=0.1,0.5"], store
    )
    assert _max_concurrent_trials(found) == room


def test_trials_without_a_result_are_told_with_how_far_they_came(store):
    found = trials("tiny", [], ["align.beta=0.1,0.5,1.0"], store)
    found[0].store.replace_json(
        "summary.json", {"train": {"dpo": {"heldout_accuracy": 0.9}}}
    )
    found[1].store.replace_json(
        "train/dpo/progress.json", {"step": 12, "total": 30, "accuracy": 0.5}
    )
    told = report(found, store)
    assert "90.0 %" in told and "align.beta=1.0: not trained yet" in told
    stopped = "align.beta=0.5: no result; stopped at step 12 of 30, with 50 % of its pairs right"
    assert stopped in told and stopped in store.path("sweep.html").read_text()


def ended(trial, margins):
    """A trial that has come to its end with these margins."""
    trial.store.replace_json(
        "summary.json", {"train": {"dpo": heldout.summary(margins)}}
    )
    heldout.write(trial.store, "dpo", margins)


def test_the_best_is_reported_on_pairs_that_did_not_choose_it_with_what_it_can_be_told_from(
    store,
):
    found = trials("tiny", [], ["align.beta=0.1,0.5,1.0"], store)
    ids = [f"pair{number}" for number in range(100)]
    ended(found[0], {id: 1.0 if number % 5 else -1.0 for number, id in enumerate(ids)})
    ended(found[1], {id: 1.0 if number % 10 else -1.0 for number, id in enumerate(ids)})
    ended(found[2], {id: 1.0 if number % 2 else -1.0 for number, id in enumerate(ids)})
    told, page = report(found, store), store.path("sweep.html").read_text()
    assert (
        told.index("align.beta=0.5")
        < told.index("align.beta=0.1")
        < told.index("align.beta=1.0")
    )
    assert (
        "90.0 % (82.6 to 94.5)" in told
        and "that select" in told
        and "the others" in told
    )
    for text in (told, page):
        assert "align.beta=0.5 is best on the " in text
        assert "not distinguishable from align.beta=0.1 (p = " in text
        assert "better than align.beta=1.0 (p = " in text


def test_trials_of_an_earlier_version_are_told_what_they_miss_and_the_others_go_on(
    store,
):
    found = trials("tiny", [], ["align.beta=0.1,0.5,1.0"], store)
    found[0].store.replace_json(
        "summary.json", {"train": {"dpo": {"heldout_accuracy": 0.99}}}
    )
    told = report(found, store)
    assert (
        "no test tells the best from the others" in told
        and "align.beta=0.1: no results by pair" in told
    )
    ended(found[1], {f"pair{number}": 1.0 for number in range(100)})
    told = report(found, store)
    assert "align.beta=0.5 is best" in told and "99.0 %" in told
    assert (
        "align.beta=0.1: no results by pair" in told
        and f"remove {found[0].store.root}" in told
    )


def test_trials_that_hold_out_other_pairs_are_ranked_untested(store):
    found = trials("tiny", [], ["seed=1,2"], store)
    ended(found[0], {f"one{number}": -1.0 for number in range(10)})
    ended(found[1], {f"two{number}": 1.0 for number in range(10)})
    told = report(found, store)
    assert told.index("seed=2") < told.index("seed=1")
    assert "too few held-out pairs in common" in told


def test_a_parameter_that_no_stage_reads_is_refused_before_anything_runs(
    tmp_path, capsys
):
    arguments = [
        "sweep",
        "tiny",
        "--run-dir",
        str(tmp_path / "x"),
        "--param",
        "serve.num_cpus=1,2",
    ]
    assert main(arguments) == 2
    assert "no stage up to align reads it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_sweep_of_beta_trains_each_once_and_ranks_them(tiny_world, tmp_path, capsys):
    small = [
        "generate.lamini=null",
        "generate.evol_instruct=null",
        "generate.orca.rows=24",
        "sft.epochs=1",
        "hh_sft.limit=32",
        "align.limit=32",
        "align.workers=1",
        "evaluate.heldout_pairs=20",
    ]
    arguments = [
        "sweep",
        "tiny",
        "--run-dir",
        str(tmp_path / "run"),
        "--param",
        "align.beta=0.1,0.5",
    ]
    arguments += [part for value in small for part in ("--set", value)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert (
        "align.beta=0.1" in printed
        and "align.beta=0.5" in printed
        and "held-out pair accuracy" in printed
    )
    assert "<svg" in (tmp_path / "run/sweep.html").read_text()
    references = list((tmp_path / "run/train/data").glob("cache-*.arrow"))
    assert len(references) == 1  # asked once for both
    assert " is best on the " in printed and "not distinguishable from" in printed
    weights = (
        tmp_path
        / "run/sweep/align.beta=0.1/checkpoints/dpo/adapter/adapter_model.safetensors"
    )
    written = weights.stat().st_mtime_ns
    assert main(arguments) == 0 and weights.stat().st_mtime_ns == written
