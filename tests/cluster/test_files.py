"""The cluster files say what they should, by the schemas of those who read them."""

import json
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from bezoar_ray.recipe import load_recipe
from bezoar_ray.runtime.capacity import Node, ResourceRequest

CLUSTER = Path(__file__).parents[2] / "cluster"
LAUNCHER = ["aws", "gcp"]
# KubeRay's own definitions, of the version in the file's name; `source` in it says where they are from.
KUBERAY = json.loads(Path(__file__).with_name("kuberay-v1.7.0.json").read_text())


def launcher_file(name: str) -> dict:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def kuberay_file(name: str) -> dict:
    return yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())


def ray_cluster(name: str) -> dict:
    spec = kuberay_file(name)["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def pods(name: str) -> list[dict]:
    spec = ray_cluster(name)
    return [
        group["template"]["spec"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_launcher_takes_the_file(name):
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    found = launcher_file(name)
    jsonschema.validate(
        found,
        json.loads(
            resources.files("ray.autoscaler").joinpath("ray-schema.json").read_text()
        ),
    )
    validate_config(fillout_defaults(found))


@pytest.mark.parametrize("name", LAUNCHER)
def test_no_work_on_the_head_and_gpus_from_zero_with_spot_first(name):
    found = launcher_file(name)
    types = found["available_node_types"]
    assert types[found["head_node_type"]]["resources"] == {"CPU": 0}
    assert all(kind.get("min_workers", 0) == 0 for kind in types.values())
    for role in ("generate", "train"):
        spot, other = types[f"{role}-spot"], types[role]
        assert spot["priority"] > other["priority"]
        assert spot["resources"] == other["resources"]
        assert spot["labels"] == other["labels"] | {"ray.io/market-type": "spot"}
        assert (
            other["labels"]["ray.io/market-type"] == "on-demand"
        )  # a run can ask for these alone
        assert "spot" in json.dumps(spot["node_config"]).lower()
        assert "spot" not in json.dumps(other["node_config"]).lower()
    assert {kind["labels"]["bezoar"] for kind in types.values()} == {
        "head",
        "cpu",
        "generate",
        "train",
        "serve",
    }


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_launched_cluster_is_closed_to_others_and_installs_nothing_unpinned(name):
    found = launcher_file(name)
    assert "--env RAY_AUTH_MODE=token" in found["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in found["head_start_ray_commands"][-1]
    assert found["setup_commands"] == found["head_setup_commands"] == []
    assert not any(
        secret in json.dumps(found["docker"]) for secret in ("API_KEY", "HF_TOKEN")
    )


@pytest.mark.parametrize("name", LAUNCHER)
def test_workers_have_no_right_to_start_instances(name):
    """They run recipes' own schemes."""
    types = launcher_file(name)["available_node_types"]
    field = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}[name]
    assert [
        "-head" in json.dumps(kind["node_config"][field]) for kind in types.values()
    ].count(True) == 1


@pytest.mark.parametrize("name", ["job", "service"])
def test_worker_pods_have_an_account_without_the_heads_rights(name):
    head, *workers = (pod["serviceAccountName"] for pod in pods(name))
    assert workers and head not in workers


def strict(schema):
    """The schema with unknown fields refused, as the API server drops them without a word."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(part) for key, part in schema.items()}
    known = (
        isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    )
    if known and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    return found


@pytest.mark.parametrize(
    ("name", "kind"), [("job", "RayJob"), ("service", "RayService")]
)
def test_kuberay_takes_the_file(name, kind):
    found = kuberay_file(name)
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", kind)
    defined = strict(KUBERAY["$defs"])
    # Metadata is Kubernetes' own, and not spelled out in these definitions.
    defined[kind]["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(found, {"$ref": f"#/$defs/{kind}", "$defs": defined})
    misspelt = json.loads(json.dumps(found).replace('"resources"', '"resource"', 1))
    with pytest.raises(jsonschema.ValidationError, match="resource"):
        jsonschema.validate(misspelt, {"$ref": f"#/$defs/{kind}", "$defs": defined})


def offers(name: str) -> list[dict[str, float]]:
    """What the nodes of each kind have, in a launcher's file or a KubeRay job."""
    if name in LAUNCHER:
        return [
            kind["resources"]
            for kind in launcher_file(name)["available_node_types"].values()
        ]
    limits = [pod["containers"][0]["resources"]["limits"] for pod in pods(name)]
    return [
        {"CPU": float(found["cpu"]), "GPU": float(found.get("nvidia.com/gpu", 0))}
        for found in limits
    ]


@pytest.mark.parametrize("name", [*LAUNCHER, "job"])
@pytest.mark.parametrize("recipe", ["openbezoar-3b", "modern"])
def test_every_stage_of_the_shipped_recipes_finds_a_node_that_fits(name, recipe):
    recipe = load_recipe(recipe)
    asks = [
        ResourceRequest.of(part, 1, part.model)
        for part in (*recipe.teachers, *recipe.judges)
    ]
    asks += [ResourceRequest.of(recipe.serve, 1, "serve")]
    parts = [recipe.training(stage) for stage in ("sft", "hh-sft", "align")]
    asks += [
        ResourceRequest.each(
            part, part.cpus_per_worker, part.gpus_per_worker, part.workers, "workers"
        )
        for part in parts
    ]
    assert [
        ask for ask in asks if not any(Node(found).suits(ask) for found in offers(name))
    ] == []


@pytest.mark.parametrize("name", ["job", "service"])
def test_a_kuberay_cluster_asks_for_a_token_and_takes_secrets_by_reference(name):
    spec = ray_cluster(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods(name):
        for container in pod["containers"]:
            given = [
                variable for variable in container.get("env", []) if "value" in variable
            ]
            assert given == [] and (container.get("envFrom") or container["env"])


def test_kuberay_gpus_come_from_zero_with_spot_first():
    groups = {
        group["groupName"]: group for group in ray_cluster("job")["workerGroupSpecs"]
    }
    assert {group["minReplicas"] for group in groups.values()} == {0}
    for role in ("generate", "train"):
        spot, other = groups[f"{role}-spot"], groups[role]
        assert spot["priority"] > other["priority"] and spot["labels"] == other[
            "labels"
        ] == {"bezoar": role}
        assert (
            spot["template"]["spec"]["containers"]
            == other["template"]["spec"]["containers"]
        )
        assert (
            spot["template"]["spec"]["nodeSelector"]
            != other["template"]["spec"]["nodeSelector"]
        )


def test_what_is_said_of_rays_way_from_spot_to_on_demand_holds():
    """As docs/how-to/cluster.md says: a node that does not come up in time lowers its kind, a refused one does not."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
        CloudResourceMonitor,
    )
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    def unavailable(status: int) -> list[str]:
        monitor = CloudResourceMonitor()
        monitor.notify(
            [
                InstanceUpdateEvent(
                    new_instance_status=status, instance_type="generate-spot"
                )
            ]
        )
        return list(monitor.get_recoverable_resource_availabilities())

    assert unavailable(Instance.ALLOCATION_TIMEOUT) == ["generate-spot"]
    assert unavailable(Instance.ALLOCATION_FAILED) == []
    given = {
        entry["name"]: entry["value"]
        for entry in ray_cluster("job")["autoscalerOptions"]["env"]
    }
    assert given == {
        "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": "1200"
    }  # Ray's own is an hour


def test_the_files_name_the_ray_that_is_pinned():
    pinned = next(
        line
        for line in (CLUSTER / "requirements-gpu.txt").read_text().splitlines()
        if line.startswith("ray==")
    )
    for name in ("job", "service"):
        assert f"ray=={ray_cluster(name)['rayVersion']}" in pinned


def test_the_endpoint_of_a_service_is_an_application_of_ours():
    from ray._common.utils import import_attr

    served = yaml.safe_load(kuberay_file("service")["spec"]["serveConfigV2"])[
        "applications"
    ]
    assert callable(import_attr(served[0]["import_path"])) and set(
        served[0]["args"]
    ) == {"run_dir"}


def test_a_volume_for_all_nodes_can_be_written_by_all():
    assert kuberay_file("volume")["spec"]["accessModes"] == ["ReadWriteMany"]
