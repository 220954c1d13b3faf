"""A run keeps the commits that branches stood for when it began."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from bezoar_ray.layout import REVISIONS
from bezoar_ray.recipe import Recipe, load_recipe
from bezoar_ray.runs import orchestrator as run_module
from bezoar_ray.runs import sweep as sweep_module
from bezoar_ray.runs.orchestrator import run
from bezoar_ray.runs.revisions import pinned
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import STAGES
from bezoar_ray.store import Store
from tests import stages

OLD, NEW = "a" * 40, "b" * 40
SOME = ["generate", "filter", "sft", "report"]


class Hub(ThreadingHTTPServer):
    """The hub's answers about repositories: `commits` by path and revision; `asked` are the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, str] = {}
        self.asked: list[str] = []

    def set(self, repository: str, revision: str, commit: str) -> None:
        self.commits[f"/api/{repository}/revision/{revision}"] = commit


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        commit = self.server.commits.get(self.path)
        body = json.dumps(
            {"id": "org/x", "sha": commit}
            if commit
            else {"error": "Repository not found"}
        ).encode()
        self.send_response(200 if commit else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Hub]:
    """In reach, with an empty cache beside it."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def scripted_stages(monkeypatch: pytest.MonkeyPatch, ray_session: None) -> None:
    monkeypatch.setattr(run_module, "TOGETHER", {})
    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(stage, module="tests.stages"))
    stages.calls.clear()
    stages.fails.clear()


def go(folder, *sets: str) -> dict[str, Any]:
    """The stages that a command carries out, and the recipe that it leaves."""
    stages.calls.clear()
    run(
        load_recipe("tiny", ["base.model=org/base", *sets]),
        Store(folder),
        SOME,
        Progress(),
    )
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def test_a_run_goes_on_with_its_commit_after_the_branch_has_moved(
    hub, scripted_stages, tmp_path
):
    hub.set("models/org/base", "main", OLD)
    for named in ("base.revision=main", "base.revision=null"):
        folder = tmp_path / named
        assert go(folder, named)["base"]["revision"] == OLD and stages.calls == SOME
        hub.set("models/org/base", "main", NEW)
        assert go(folder, named)["base"]["revision"] == OLD and stages.calls == []
        assert (
            go(folder, named, f"base.revision={OLD}")["base"]["revision"] == OLD
            and stages.calls == []
        )
        hub.set("models/org/base", "main", OLD)


def test_a_revision_that_is_edited_counts(hub, scripted_stages, tmp_path):
    hub.set("models/org/base", "main", OLD)
    go(tmp_path / "run")
    assert go(tmp_path / "run", f"base.revision={NEW}")["base"]["revision"] == NEW
    assert stages.calls == ["sft", "report"]
    assert go(tmp_path / "run", "base.revision=v2")["base"]["revision"] == "v2"
    assert stages.calls == ["sft", "report"]
    assert go(tmp_path / "run", "base.revision=main")["base"]["revision"] == OLD


def test_the_directorys_own_recipe_goes_on_too(hub, scripted_stages, tmp_path):
    hub.set("models/org/base", "main", OLD)
    go(tmp_path / "run")
    hub.set("models/org/base", "main", NEW)
    stages.calls.clear()
    run(
        load_recipe(str(tmp_path / "run/recipe.yaml")),
        Store(tmp_path / "run"),
        SOME,
        Progress(),
    )
    assert stages.calls == []


def test_a_run_that_began_with_a_name_keeps_it(hub, scripted_stages, tmp_path, capsys):
    """As all runs did once, and as one does that knows no hub."""
    assert (
        go(tmp_path / "run", "base.revision=main")["base"]["revision"] == "main"
        and stages.calls == SOME
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: the commit of model org/base@main is not known" in said
    hub.set("models/org/base", "main", NEW)
    assert (
        go(tmp_path / "run", "base.revision=main")["base"]["revision"] == "main"
        and stages.calls == []
    )
    assert "is not known" not in " ".join(capsys.readouterr().out.split())


def test_a_first_command_that_is_refused_decides_nothing(hub, tmp_path):
    store, said = Store(tmp_path / "run"), []
    recipe = load_recipe("tiny", ["base.model=org/base"])
    assert pinned(recipe, store, said.append) == recipe and len(said) == 1
    hub.set("models/org/base", "main", OLD)
    assert pinned(recipe, store, said.append).base.revision == OLD and len(said) == 1


def test_all_trials_of_a_sweep_have_the_commit_that_it_began_with(
    hub, tmp_path, monkeypatch
):
    trained = []
    monkeypatch.setattr(sweep_module, "run", lambda recipe, *_: trained.append(recipe))
    monkeypatch.setattr(sweep_module, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(
        sweep_module,
        "_train",
        lambda trials, _: trained.extend(trial.recipe for trial in trials),
    )
    hub.set("models/org/base", "main", OLD)
    store = Store(tmp_path / "run")
    for _ in range(2):
        found = sweep_module.trials(
            "tiny", ["base.model=org/base"], ["align.beta=0.1,0.5"], store
        )
        sweep_module.sweep(found, store, Progress())
        hub.set("models/org/base", "main", NEW)
    assert [recipe.base.revision for recipe in trained] == [OLD] * 6


def test_a_hub_that_answers_late_gives_all_trials_one_commit(
    hub, tmp_path, monkeypatch
):
    """Or each trial would generate anew, and pay anew, what the sweep has done for all of them."""
    trained, warnings = [], []

    def run_shared(recipe: Recipe, store: Store, *_: Any) -> None:
        trained.append(pinned(recipe, store, warnings.append))  # as `run` begins
        store.replace("recipe.yaml", b"")

    class Told(Progress):
        def say(self, text: str) -> None:
            warnings.append(text)
            hub.set("models/org/base", "main", OLD)

    monkeypatch.setattr(sweep_module, "run", run_shared)
    monkeypatch.setattr(sweep_module, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(
        sweep_module,
        "_train",
        lambda trials, _: trained.extend(trial.recipe for trial in trials),
    )
    found = sweep_module.trials(
        "tiny",
        ["base.model=org/base"],
        ["align.beta=0.1,0.5,1"],
        Store(tmp_path / "run"),
    )
    sweep_module.sweep(found, Store(tmp_path / "run"), Told())
    assert [recipe.base.revision for recipe in trained] == [OLD] * 4 and len(
        warnings
    ) == 1


EVERYWHERE = [
    "teacher={model: org/model, revision: main}",
    "judges=[{model: org/model}, {model: org/asked, base_url: 'http://127.0.0.1:1/v1'}]",
    "base.model=org/model",
    "filter.meaning={model: org/model, revision: v1}",
    "seeds.dolly=[{source: 'hub:org/rows:part', revision: main}]",
    "seeds.flan=[{source: 'hub:org/rows', revision: main}, {source: 'hub:org/rows', revision: "
    + OLD
    + "}]",
    "seeds.hh_rlhf=[{source: hh.jsonl, revision: main}, {source: 'hub:org/none'}]",
    "sft.data={own: {source: 'hub:org/own', revision: refs/convert/parquet}}",
    "evaluate.mt_bench.judges=[{model: org/model}]",
    "evaluate.reward_bench.two={source: 'hub:org/rows', revision: main}",
]


def test_models_and_data_are_found_wherever_a_recipe_names_them(hub, tmp_path):
    hub.set("models/org/model", "main", NEW)
    hub.set("models/org/model", "v1", "c" * 40)
    hub.set("datasets/org/rows", "main", "d" * 40)
    hub.set("datasets/org/own", "refs%2Fconvert%2Fparquet", "e" * 40)
    recipe = pinned(
        load_recipe("tiny", EVERYWHERE), Store(tmp_path / "run"), pytest.fail
    )
    assert [
        part.revision for part in (*recipe.teachers, recipe.base, *recipe.judges)
    ] == [NEW, NEW, NEW, None]
    assert (
        recipe.filter.meaning.revision == "c" * 40
        and recipe.evaluate.mt_bench.judges[0].revision == NEW
    )
    assert [part.revision for part in (*recipe.seeds.dolly, *recipe.seeds.flan)] == [
        "d" * 40,
        "d" * 40,
        OLD,
    ]
    assert [part.revision for part in recipe.seeds.hh_rlhf] == ["main", None]
    assert recipe.sft.data["own"].revision == "e" * 40
    assert recipe.evaluate.reward_bench.two.revision == "d" * 40
    assert len(hub.asked) == len(set(hub.asked)) == 4
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_folders_and_the_embedded_world_are_left_as_they_are(
    hub, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/base").mkdir(parents=True)
    for sets in (
        [],
        ["base.model=models/base"],
        ["base.model=./models/x"],
        [f"base.model={tmp_path}/base"],
    ):
        recipe = load_recipe("tiny", [*sets, "base.revision=main"])
        assert pinned(recipe, Store(tmp_path / "run"), pytest.fail) == recipe
    assert not hub.asked and not Store(tmp_path / "run").exists(REVISIONS)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_hub_the_cache_says_which_commit_a_branch_is(
    hub, tmp_path, monkeypatch, offline
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for folder, commit in (("models--org--base", OLD), ("datasets--org--rows", NEW)):
        reference = tmp_path / "hub" / folder / "refs/main"
        reference.parent.mkdir(parents=True)
        reference.write_text(commit)
    sets = [
        "base.model=org/base",
        "seeds.dolly=[{source: 'hub:org/rows', revision: main}]",
    ]
    recipe = pinned(load_recipe("tiny", sets), Store(tmp_path / "run"), pytest.fail)
    assert (recipe.base.revision, recipe.seeds.dolly[0].revision) == (OLD, NEW)
    assert not hub.asked
