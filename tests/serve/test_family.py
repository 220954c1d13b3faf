"""What a Serve config file deploys."""

import pytest
import yaml

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import load_recipe
from bezoar_ray.serve.app import family
from bezoar_ray.store import Store


@pytest.fixture
def run_dir(tmp_path) -> Store:
    """A run directory with a joined checkpoint and a merged one."""
    store = Store(tmp_path)
    store.replace("recipe.yaml", yaml.safe_dump(load_recipe("tiny").model_dump(mode="json")).encode())
    store.replace("checkpoints/sft/joined/adapter_config.json", b"{}")
    return store


def test_one_application_for_all_that_is_joined(run_dir, monkeypatch):
    monkeypatch.setenv("BEZOAR_API_KEY", "k")
    assert family({"run_dir": str(run_dir.root)})._bound_deployment.name == "engine"


def test_replicas_come_and_go_between_the_recipes_bounds(run_dir, monkeypatch):
    monkeypatch.setenv("BEZOAR_API_KEY", "k")
    for bounds, scales in (({"replicas": 2}, None), ({"replicas": 2, "max_replicas": 5}, (2, 5))):
        recipe = load_recipe("tiny", [f"serve.{name}={value}" for name, value in bounds.items()])
        run_dir.replace("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json")).encode())
        found = family({"run_dir": str(run_dir.root)})._bound_deployment._deployment_config
        limits = found.autoscaling_config
        assert (limits and (limits.min_replicas, limits.max_replicas)) == scales
        assert scales or found.num_replicas == 2


def test_without_a_key_for_its_clients_it_is_refused(run_dir, monkeypatch):
    monkeypatch.delenv("BEZOAR_API_KEY", raising=False)
    with pytest.raises(RecipeError, match="BEZOAR_API_KEY"):
        family({"run_dir": str(run_dir.root)})


def test_checkpoints_that_need_engines_of_their_own_are_named(run_dir, monkeypatch):
    monkeypatch.setenv("BEZOAR_API_KEY", "k")
    run_dir.replace("checkpoints/dpo/merged/config.json", b"{}")
    with pytest.raises(BezoarError, match="base, sft, dpo need several engines"):
        family({"run_dir": str(run_dir.root)})
