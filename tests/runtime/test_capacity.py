"""What a cluster can never give is refused at once."""

import shutil
from pathlib import Path

import pytest
import requests
import yaml

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import ModelSection, Serve, Training, load_recipe
from bezoar_ray.runtime import capacity
from bezoar_ray.runtime.capacity import (
    Node,
    ResourceRequest,
    check_capacity,
    check_stages,
)
from bezoar_ray.stages import STAGES

ROOT = Path(__file__).parents[2]
KUBERNETES = "ray.autoscaler._private.kuberay.node_provider.KubernetesHttpApiClient"
GPU_NODE = {"CPU": 32.0, "GPU": 8.0, "accelerator_type:H100": 1.0}


@pytest.fixture
def cluster(monkeypatch):
    """Nodes that are there, and what an autoscaler may start."""

    def set_up(*alive: Node) -> None:
        monkeypatch.setattr(capacity, "_alive", lambda: iter(alive))

    return set_up


def launch(monkeypatch, tmp_path, kinds: dict, max_workers: int = 9) -> None:
    """Be on the head of a cluster of Ray's launcher."""
    launched = {
        "max_workers": max_workers,
        "head_node_type": "head",
        "available_node_types": {"head": {"resources": {"CPU": 0}}} | kinds,
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(launched))
    monkeypatch.setenv("HOME", str(tmp_path))


def ask(count: int = 1, **part) -> ResourceRequest:
    return ResourceRequest.of(ModelSection(model="m", **part), count, "m")


def test_what_fits_passes(cluster):
    cluster(Node({"CPU": 4.0}, {}), Node(GPU_NODE, {"pool": "gpu"}))
    check_capacity(
        [
            ask(8, num_gpus=1, accelerator_type="H100", node_labels={"pool": "gpu"}),
            ask(4),
        ]
    )


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            {"num_gpus": 16},
            r"m \(1 actors with 1 CPU, 16 GPU each\): no node .* The largest has 32 CPU, 8 GPU",
        ),
        (
            {"num_gpus": 1, "accelerator_type": "A100"},
            r"1 GPU of kind A100 each\): no node of the cluster has that",
        ),
        (
            {"node_labels": {"pool": "spot"}},
            r"on nodes labelled \{'pool': 'spot'\}\): no node of the cluster has that",
        ),
    ],
)
def test_an_actor_that_fits_on_no_node_is_refused_with_what_is_missing(
    cluster, part, said
):
    cluster(Node({"CPU": 4.0}, {}), Node(GPU_NODE, {"pool": "gpu"}))
    with pytest.raises(RecipeError, match=said):
        check_capacity([ask(**part)])


def test_more_actors_than_all_nodes_take_are_refused(cluster):
    cluster(Node(GPU_NODE, {}))
    with pytest.raises(
        RecipeError, match=r"together 9 GPU, and such nodes have 8 at most.*--stages"
    ):
        check_capacity([ask(8, num_gpus=1), ask(1, num_gpus=1)])


def test_actors_that_would_have_to_share_the_nodes_of_their_labels_are_refused(cluster):
    cluster(Node(GPU_NODE, {"pool": "a"}), Node(GPU_NODE, {"pool": "b"}))
    here = {"num_gpus": 1, "node_labels": {"pool": "a"}}
    check_capacity([ask(4, **here), ask(4, **here), ask(8, num_gpus=1)])
    with pytest.raises(
        RecipeError, match="together 9 GPU, and such nodes have 8 at most"
    ):
        check_capacity([ask(5, **here), ask(4, **here)])
    with pytest.raises(
        RecipeError, match="together 17 GPU, and such nodes have 16 at most"
    ):
        check_capacity([ask(4, **here), ask(4, **here), ask(9, num_gpus=1)])


def test_actors_for_which_only_the_sum_would_do_are_refused(cluster):
    cluster(Node(GPU_NODE), Node(GPU_NODE))
    with pytest.raises(
        RecipeError, match=r"m \(3 actors .*have room for 2 of them at most"
    ):
        check_capacity([ask(3, num_gpus=5)])


def test_what_a_living_node_alone_has_counts_beside_the_autoscalers_kinds(
    cluster, monkeypatch, tmp_path
):
    launch(
        monkeypatch,
        tmp_path,
        {"gpu": {"resources": {"CPU": 32, "GPU": 8}, "max_workers": 1}},
    )
    cluster(Node(GPU_NODE))  # what kind of GPU it has it found by itself
    check_capacity([ask(8, num_gpus=1, accelerator_type="H100")])
    check_capacity([ask(8, num_gpus=1)])
    with pytest.raises(
        RecipeError, match="together 9 GPU, and such nodes have 8 at most"
    ):
        check_capacity([ask(9, num_gpus=1)])


def test_nodes_that_the_launchers_autoscaler_may_start_count(
    cluster, monkeypatch, tmp_path
):
    cluster(Node({"CPU": 0.0}))
    kinds = {
        "gpu": {"resources": GPU_NODE, "labels": {"pool": "gpu"}, "max_workers": 4}
    }
    launch(monkeypatch, tmp_path, kinds)
    check_capacity([ask(32, num_gpus=1, node_labels={"pool": "gpu"})])
    with pytest.raises(
        RecipeError, match="together 33 GPU, and such nodes have 32 at most"
    ):
        check_capacity([ask(33, num_gpus=1)])
    with pytest.raises(RecipeError, match="no node of the cluster has that"):
        check_capacity([ask(1, num_gpus=1, node_labels={"pool": "serve"})])


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_shipped_cluster_whose_head_is_alone_has_room_for_the_shipped_recipes(
    cluster, monkeypatch, tmp_path, name
):
    cluster(Node({"CPU": 0.0}))
    shipped = ROOT / f"cluster/{name}.yaml"
    shutil.copy(shipped, tmp_path / "ray_bootstrap_config.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe("openbezoar-3b")
    check_capacity(
        [
            ResourceRequest.of(part, part.actors, part.model)
            for part in (*recipe.teachers, *recipe.judges)
        ]
    )


def test_the_launchers_most_workers_are_those_of_all_kinds_together(
    cluster, monkeypatch, tmp_path
):
    cluster(Node({"CPU": 0.0}))
    launch(
        monkeypatch,
        tmp_path,
        {"gpu": {"resources": GPU_NODE, "max_workers": 4}},
        max_workers=2,
    )
    with pytest.raises(
        RecipeError, match="together 17 GPU, and such nodes have 16 at most"
    ):
        check_capacity([ask(17, num_gpus=1)])


@pytest.mark.parametrize(
    ("change", "who"),
    [
        ("teacher.num_gpus=9", "tiny-teacher"),
        ("align.gpus_per_worker=9", "align's workers"),
        ("serve.num_gpus=9", "the endpoint's engines"),
    ],
)
def test_a_later_stage_that_never_fits_is_refused_before_the_first(
    cluster, change, who
):
    cluster(Node(GPU_NODE))
    recipe = load_recipe("tiny", [change])
    check_stages(load_recipe("tiny"), STAGES)
    with pytest.raises(RecipeError, match=rf"{who} .*no node of the cluster has that"):
        check_stages(recipe, STAGES)
    check_stages(recipe, ["report"])


@pytest.fixture
def kubernetes(cluster, monkeypatch) -> None:
    """Be the head's pod of cluster/kuberay/job.yaml, all that runs of it, and be allowed to read its RayCluster."""
    job = yaml.safe_load((ROOT / "cluster/kuberay/job.yaml").read_text())

    def get(client, path):
        assert (client._namespace, path) == ("team", "rayclusters/bezoar-x7")
        return {
            "metadata": {"name": "bezoar-x7", "namespace": "team"},
            "spec": job["spec"]["rayClusterSpec"],
        }

    cluster(Node({"CPU": 0.0}))
    monkeypatch.setenv("RAY_CLUSTER_NAME", "bezoar-x7")
    monkeypatch.setenv("RAY_CLUSTER_NAMESPACE", "team")
    monkeypatch.setattr(f"{KUBERNETES}.get", get)


def test_on_kubernetes_what_the_raycluster_may_grow_to_counts(kubernetes):
    generate = {"num_gpus": 1, "node_labels": {"bezoar": "generate"}}
    check_capacity(
        [
            ask(128, **generate),
            ask(16, num_gpus=1, node_labels={"bezoar": "train"}),
            ask(8),
        ]
    )
    with pytest.raises(
        RecipeError, match="together 129 GPU, and such nodes have 128 at most"
    ):
        check_capacity([ask(129, **generate)])
    with pytest.raises(
        RecipeError,
        match="no node of the cluster has that. The largest has 90 CPU, 8 GPU",
    ):
        check_capacity([ask(1, num_gpus=16)])


def test_where_kubernetes_does_not_tell_nothing_is_refused(kubernetes, monkeypatch):
    def refused(client, path):
        raise requests.HTTPError("403 Client Error: Forbidden")

    monkeypatch.setattr(f"{KUBERNETES}.get", refused)
    check_capacity([ask(8, num_gpus=16)])
    monkeypatch.undo()
    monkeypatch.setenv("RAY_CLUSTER_NAME", "bezoar-x7")
    monkeypatch.setenv("RAY_CLUSTER_NAMESPACE", "team")  # no token is mounted here
    check_capacity([ask(8, num_gpus=16)])


def test_every_section_says_where_its_actors_belong():
    where = {"accelerator_type": "L4", "node_labels": {"bezoar": "train"}}
    wanted = {"accelerator_type": "L4", "label_selector": {"bezoar": "train"}}
    assert (
        ModelSection(model="m", **where).placement == Serve(**where).placement == wanted
    )
    assert (
        Training(learning_rate=1e-4, **where).placement == wanted
        and Serve().placement == {}
    )


def test_on_this_machine_a_training_that_can_never_start_is_refused(ray_session):
    part = Training(learning_rate=1e-4, workers=16, batch=16, cpus_per_worker=4)
    with pytest.raises(
        RecipeError,
        match=r"sft's workers \(16 actors with 4 CPU each\).*together 64 CPU",
    ):
        check_capacity(
            [
                ResourceRequest.each(
                    part,
                    part.cpus_per_worker,
                    part.gpus_per_worker,
                    part.workers,
                    "sft's workers",
                )
            ]
        )
