"""A stage that is registered appears wherever stages are listed."""

import sys
import types
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bezoar_ray import cli
from bezoar_ray.plan import plan, render
from bezoar_ray.recipe import load_recipe
from bezoar_ray.report.cards import write_cards
from bezoar_ray.report.content import gather
from bezoar_ray.report.page import render as render_page
from bezoar_ray.runs import doctor, orchestrator, sweep
from bezoar_ray.runs.manifest import fingerprint
from bezoar_ray.runs.orchestrator import parse_stages, run
from bezoar_ray.runtime.capacity import requests_of
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.serve.arguments import modes
from bezoar_ray.stages import STAGES, Checkpoint, Stage, StageResult, checkpoint_names
from bezoar_ray.store import Store

NAME = "second-sft"


@pytest.fixture
def registered(monkeypatch) -> Iterator[Stage]:
    """A stage that trains once more after sft, with the settings of sft, on nodes of two sections."""
    module = types.ModuleType("second_sft")
    module.run = lambda context: StageResult([], {"train": {NAME: {"loss_last": 1.5}}})
    monkeypatch.setitem(sys.modules, "second_sft", module)
    stage = Stage(
        name=NAME,
        label="training once more",
        module="second_sft",
        reads=("sft.epochs",),
        section="sft",
        scheduled=("sft", "serve"),
        checkpoint=Checkpoint(
            parent="sft",
            below=("sft",),
            trained="training once more",
            colour="#000000",
        ),
    )
    before = list(STAGES.items())
    place = 1 + list(STAGES).index("sft")
    STAGES.clear()
    STAGES.update([*before[:place], (NAME, stage), *before[place:]])
    yield stage
    STAGES.clear()
    STAGES.update(before)


def test_the_command_knows_it(registered, capsys):
    assert NAME in parse_stages(None) and parse_stages(f"sft,{NAME}") == ["sft", NAME]
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    assert NAME in capsys.readouterr().out.replace("\n", "")


def test_the_plan_has_a_line_for_one_without_actors(registered, monkeypatch):
    quiet = Stage(name="counting", label="tokens of the rows", module="second_sft")
    monkeypatch.setitem(STAGES, "counting", quiet)
    lines = render(plan(load_recipe("tiny"))).splitlines()
    assert any(
        line.startswith("counting") and "tokens of the rows" in line for line in lines
    )


def test_doctor_and_the_capacity_check_ask_for_its_resources(registered):
    recipe = load_recipe("tiny", ["sft.gpus_per_worker=1", "serve.num_gpus=1"])
    assert [request.who for request in requests_of(recipe, NAME)] == [
        f"{NAME}'s workers",
        "the endpoint's engines",
    ]
    assert any(
        line.startswith(f"GPUs: {NAME} asks for 3")
        for line in doctor.misses(recipe, [])
    )


def test_its_checkpoint_is_served_shown_and_described(registered, tmp_path):
    store, recipe = Store(tmp_path), load_recipe("tiny")
    assert checkpoint_names() == (
        "base",
        "sft",
        NAME,
        "hh-sft",
        "dpo",
        "kto",
        "orpo",
        "asft",
        "ppo",
        "steer",
    )
    store.replace_json(f"checkpoints/{NAME}/lineage.json", {"fingerprint": "0" * 16})
    store.replace(f"checkpoints/{NAME}/joined/adapter_config.json", b"{}")
    assert modes(recipe, store)[NAME] == "joined"
    store.replace_json(
        "summary.json", {"stages": {NAME: {"status": "failed", "seconds": 1.0}}}
    )
    content = gather(recipe, store)
    assert f"{NAME}: failed" in content.missing and NAME in render_page(content)
    assert f"cards/{NAME}.md" in write_cards(content, store)
    assert "the result of training once more" in store.read(f"cards/{NAME}.md").decode()


def test_its_fields_enter_the_fingerprints_from_there_on(registered):
    one, other = (load_recipe("tiny", [f"sft.epochs={epochs}"]) for epochs in (1, 2))
    assert fingerprint(one, "filter") == fingerprint(other, "filter")
    assert fingerprint(one, NAME) != fingerprint(other, NAME)
    del STAGES[NAME]
    assert fingerprint(one, "sft") != fingerprint(one, "hh-sft")


def test_a_sweep_carries_it_out(registered):
    assert NAME in sweep._stages(load_recipe("tiny"))


def test_a_run_carries_it_out(registered, ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(orchestrator, "TOGETHER", {})
    for name, stage in list(STAGES.items()):
        if name != NAME:
            monkeypatch.setitem(STAGES, name, replace(stage, module="tests.stages"))
    found = run(
        load_recipe("tiny"),
        Store(tmp_path),
        ["generate", "filter", "sft", NAME],
        Progress(),
    )
    assert (
        found["stages"][NAME]["status"] == "done"
        and found["train"][NAME]["loss_last"] == 1.5
    )
