"""What a Serve config file deploys."""

import socket

import pytest
import yaml

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import load_recipe
from bezoar_ray.serve import app
from bezoar_ray.serve.app import build_app
from bezoar_ray.store import Store


@pytest.fixture
def run_dir(tmp_path) -> Store:
    """A run directory with a joined checkpoint and a merged one."""
    store = Store(tmp_path)
    store.replace(
        "recipe.yaml",
        yaml.safe_dump(load_recipe("tiny").model_dump(mode="json")).encode(),
    )
    store.replace("checkpoints/sft/joined/adapter_config.json", b"{}")
    return store


def test_one_application_for_all_that_is_joined(run_dir, monkeypatch):
    monkeypatch.setenv("BEZOAR_API_KEY", "k")
    assert build_app({"run_dir": str(run_dir.root)})._bound_deployment.name == "engine"


def test_replicas_come_and_go_between_the_recipes_bounds(run_dir, monkeypatch):
    monkeypatch.setenv("BEZOAR_API_KEY", "k")
    for bounds, scales in (
        ({"replicas": 2}, None),
        ({"replicas": 2, "max_replicas": 5}, (2, 5)),
    ):
        recipe = load_recipe(
            "tiny", [f"serve.{name}={value}" for name, value in bounds.items()]
        )
        run_dir.replace(
            "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json")).encode()
        )
        found = build_app(
            {"run_dir": str(run_dir.root)}
        )._bound_deployment._deployment_config
        limits = found.autoscaling_config
        assert (limits and (limits.min_replicas, limits.max_replicas)) == scales
        assert scales or found.num_replicas == 2


def test_without_a_key_for_its_clients_it_is_refused(run_dir, monkeypatch):
    monkeypatch.delenv("BEZOAR_API_KEY", raising=False)
    with pytest.raises(RecipeError, match="BEZOAR_API_KEY"):
        build_app({"run_dir": str(run_dir.root)})


def test_checkpoints_that_need_engines_of_their_own_are_named(run_dir, monkeypatch):
    monkeypatch.setenv("BEZOAR_API_KEY", "k")
    run_dir.replace("checkpoints/dpo/merged/config.json", b"{}")
    with pytest.raises(BezoarError, match="base, sft, dpo need several engines"):
        build_app({"run_dir": str(run_dir.root)})


def test_a_port_that_somebody_listens_on_is_refused(monkeypatch):
    """Serve would share it, and each of the two would get some of the requests."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as other:
        other.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEPORT, 1
        )  # as Serve's proxy has it
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            RecipeError,
            match=f"serve.port {port}: Address already in use.*serve.port={port + 1}",
        ):
            app._check_port_is_free("127.0.0.1", port)
    app._check_port_is_free("127.0.0.1", port)


def test_what_another_command_serves_is_not_ended(
    ray_session, run_dir, tmp_path_factory
):
    """On a cluster: evaluate would take the endpoint of `bezoar serve` for a leftover of its own."""
    with app._lock_on_cluster(run_dir):
        with (
            pytest.raises(RecipeError, match="is served on this cluster already"),
            app._lock_on_cluster(run_dir),
        ):
            pass
        with app._lock_on_cluster(Store(tmp_path_factory.mktemp("other"))):
            pass
    with app._lock_on_cluster(run_dir):
        pass


@pytest.fixture
def served(run_dir, monkeypatch) -> app.ServedCheckpoints:
    """Base and a joined sft, deployed as far as anybody looks."""
    for name in ("base", "sft"):
        run_dir.replace_json(
            f"checkpoints/{name}/lineage.json", {"fingerprint": "first"}
        )
    found = app.ServedCheckpoints(load_recipe("tiny"), run_dir, None)
    found._deployed = found._wanted()
    return found


def trained_anew(store: Store, name: str) -> None:
    store.replace_json(f"checkpoints/{name}/lineage.json", {"fingerprint": "second"})


def test_what_needs_another_number_of_engines_is_said_once_and_what_runs_stays_known(
    served, run_dir, capsys
):
    before = served._deployed
    run_dir.replace("checkpoints/dpo/merged/config.json", b"{}")
    run_dir.replace_json("checkpoints/dpo/lineage.json", {"fingerprint": "first"})
    served.replace_retrained()
    served.replace_retrained()
    assert capsys.readouterr().out.count("different number of engines") == 1
    trained_anew(run_dir, "sft")
    served.replace_retrained()  # still: what is deployed is one engine
    assert (
        capsys.readouterr().out.count("different number of engines") == 1
        and served._deployed == before
    )


def test_a_replacement_that_does_not_start_is_tried_once(
    served, run_dir, monkeypatch, capsys
):
    tried = []

    def fail(self) -> None:
        tried.append(self._recipe.base.model)
        raise TimeoutError("it does not start")

    monkeypatch.setattr(app.ServedCheckpoints, "deploy", fail)
    other = load_recipe("tiny", ["base.model=another"]).model_dump(mode="json")
    run_dir.replace("recipe.yaml", yaml.safe_dump(other).encode())
    trained_anew(run_dir, "sft")
    with pytest.raises(BezoarError, match="not replaced: it does not start"):
        served.replace_retrained()
    served.replace_retrained()
    assert tried == ["another"]  # on the base that it was trained on
