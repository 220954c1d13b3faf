"""What a cluster can never give is refused at once."""

import shutil
from pathlib import Path

import pytest
import yaml

from bezoar_ray import room
from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import ModelPart, Serve, Training, load_recipe
from bezoar_ray.room import Ask, Node, check_room, check_stages
from bezoar_ray.run import STEPS

GPU_NODE = {"CPU": 32.0, "GPU": 8.0, "accelerator_type:H100": 1.0}


@pytest.fixture
def cluster(monkeypatch):
    """Nodes that are there, and what an autoscaler may start."""

    def set_up(*alive: Node) -> None:
        monkeypatch.setattr(room, "_alive", lambda: iter(alive))

    return set_up


def ask(count: int = 1, **part) -> Ask:
    return Ask.of(ModelPart(model="m", **part), count, "m")


def test_what_fits_passes(cluster):
    cluster(Node({"CPU": 4.0}, {}), Node(GPU_NODE, {"pool": "gpu"}))
    check_room([ask(8, num_gpus=1, accelerator_type="H100", node_labels={"pool": "gpu"}), ask(4)])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"num_gpus": 16}, r"m \(1 actors with 1 CPU, 16 GPU each\): no node .* The largest has 32 CPU, 8 GPU"),
        ({"num_gpus": 1, "accelerator_type": "A100"}, r"1 GPU of kind A100 each\): no node of the cluster has that"),
        ({"node_labels": {"pool": "spot"}}, r"on nodes labelled \{'pool': 'spot'\}\): no node of the cluster has that"),
    ],
)
def test_an_actor_that_fits_on_no_node_is_refused_with_what_is_missing(cluster, part, said):
    cluster(Node({"CPU": 4.0}, {}), Node(GPU_NODE, {"pool": "gpu"}))
    with pytest.raises(RecipeError, match=said):
        check_room([ask(**part)])


def test_more_actors_than_all_nodes_take_are_refused(cluster):
    cluster(Node(GPU_NODE, {}))
    with pytest.raises(RecipeError, match=r"together 9 GPU, and the cluster has 8 at most.*--stages"):
        check_room([ask(8, num_gpus=1), ask(1, num_gpus=1)])


@pytest.mark.parametrize(
    "asked", [ask(9, num_gpus=1, node_labels={"pool": "a"}), ask(3, num_gpus=5)], ids=["by labels", "by what is left"]
)
def test_actors_for_which_only_the_sum_would_do_are_refused(cluster, asked):
    cluster(Node(GPU_NODE, {"pool": "a"}), Node(GPU_NODE, {"pool": "b"}))
    with pytest.raises(
        RecipeError, match=rf"m \({asked.count} actors .*have room for {asked.count - 1} of them at most"
    ):
        check_room([asked])


def test_nodes_that_the_launchers_autoscaler_may_start_count(cluster, monkeypatch, tmp_path):
    cluster(Node({"CPU": 0.0}))
    kinds = {"head": {"resources": {"CPU": 0}},
             "gpu": {"resources": GPU_NODE, "labels": {"pool": "gpu"}, "max_workers": 4}}  # fmt: skip
    launched = {"max_workers": 9, "head_node_type": "head", "available_node_types": kinds}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(launched))
    monkeypatch.setenv("HOME", str(tmp_path))
    check_room([ask(32, num_gpus=1, node_labels={"pool": "gpu"})])
    with pytest.raises(RecipeError, match="together 33 GPU, and the cluster has 32 at most"):
        check_room([ask(33, num_gpus=1)])
    with pytest.raises(RecipeError, match="no node of the cluster has that"):
        check_room([ask(1, num_gpus=1, node_labels={"pool": "serve"})])


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_shipped_cluster_whose_head_is_alone_has_room_for_the_shipped_recipes(cluster, monkeypatch, tmp_path, name):
    cluster(Node({"CPU": 0.0}))
    shipped = Path(__file__).parents[1] / f"cluster/{name}.yaml"
    shutil.copy(shipped, tmp_path / "ray_bootstrap_config.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe("openbezoar-3b")
    check_room([Ask.of(part, part.actors, part.model) for part in (*recipe.teachers, *recipe.judges)])


def test_the_launchers_most_workers_are_those_of_all_kinds_together(cluster, monkeypatch, tmp_path):
    cluster(Node({"CPU": 0.0}))
    kinds = {"head": {"resources": {"CPU": 0}}, "gpu": {"resources": GPU_NODE, "max_workers": 4}}
    launched = {"max_workers": 2, "head_node_type": "head", "available_node_types": kinds}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(launched))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RecipeError, match="together 17 GPU, and the cluster has 16 at most"):
        check_room([ask(17, num_gpus=1)])


@pytest.mark.parametrize(
    ("change", "who"),
    [("teacher.num_gpus=9", "tiny-teacher"), ("align.gpus_per_worker=9", "dpo's workers"),
     ("serve.num_gpus=9", "the endpoint's engines")],
)  # fmt: skip
def test_a_later_stage_that_never_fits_is_refused_before_the_first(cluster, change, who):
    cluster(Node(GPU_NODE))
    recipe = load_recipe("tiny", [change])
    check_stages(load_recipe("tiny"), STEPS)
    with pytest.raises(RecipeError, match=rf"{who} .*no node of the cluster has that"):
        check_stages(recipe, STEPS)
    check_stages(recipe, ["report"])


def test_what_kubernetes_may_start_is_not_known_and_nothing_is_refused(cluster, monkeypatch):
    cluster(Node({"CPU": 0.0}))
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start")
    check_room([ask(8, num_gpus=8)])


def test_every_section_says_where_its_actors_belong():
    where = {"accelerator_type": "L4", "node_labels": {"bezoar": "train"}}
    wanted = {"accelerator_type": "L4", "label_selector": {"bezoar": "train"}}
    assert ModelPart(model="m", **where).placement == Serve(**where).placement == wanted
    assert Training(learning_rate=1e-4, **where).placement == wanted and Serve().placement == {}


def test_on_this_machine_a_training_that_can_never_start_is_refused(ray_session):
    part = Training(learning_rate=1e-4, workers=16, batch=16, cpus_per_worker=4)
    with pytest.raises(RecipeError, match=r"sft's workers \(16 actors with 4 CPU each\).*together 64 CPU"):
        check_room([Ask.each(part, part.cpus_per_worker, part.gpus_per_worker, part.workers, "sft's workers")])
