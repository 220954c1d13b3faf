"""Check whether a cluster can ever give what a stage asks for.

If it cannot, the run fails at once, instead of waiting for nodes that never come.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import yaml

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import ModelSection, Recipe, SchedulingSection, Serve, Training

_LAUNCHER_CONFIG = "~/ray_bootstrap_config.yaml"
"""The cluster's file, as Ray's launcher leaves it on the head, where drivers run."""
_KUBERAY_VARIABLES = ("RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE")
"""Environment variables of KubeRay's pods."""
_KIND_SHARE = 0.001
"""What an actor takes of `accelerator_type:KIND`, of which each node has 1."""
_ROUNDING = 1e-6  # so that three actors of 1/3 GPU fit on one
_REMEDY = (
    "Lower what the recipe asks for, or start nodes that have it; stages can also run "
    "one by one (--stages)"
)


@dataclass(frozen=True)
class ResourceRequest:
    """A number of actors, each of which needs these resources on one node."""

    who: str
    count: int
    needs: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, section: ModelSection | Serve, count: int, who: str
    ) -> "ResourceRequest":
        """Return the request of the actors of a recipe's section."""
        return cls.each(section, section.num_cpus, section.num_gpus, count, who)

    @classmethod
    def each(
        cls, section: SchedulingSection, cpus: float, gpus: float, count: int, who: str
    ) -> "ResourceRequest":
        """Return the same, for a section that names CPUs and GPUs differently."""
        needs = {"CPU": cpus, "GPU": gpus}
        if section.accelerator_type:
            needs[f"accelerator_type:{section.accelerator_type}"] = _KIND_SHARE
        wanted = {name: number for name, number in needs.items() if number}
        return cls(who, count, wanted, section.node_labels)

    def __str__(self) -> str:
        needs = []
        kind = ""
        for name, number in self.needs.items():
            if ":" in name:
                kind = f" of kind {name.partition(':')[2]}"
            elif number >= 0.01:
                needs.append(f"{number:g} {name}")
        each = ", ".join(needs) or "nothing"
        labels = f" on nodes labelled {self.labels}" if self.labels else ""
        return f"{self.who} ({self.count} actors with {each}{kind} each{labels})"


@dataclass
class Node:
    """A node of the cluster, or a kind of which an autoscaler may start `count`."""

    offers: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)
    count: float = 1

    def suits(self, request: ResourceRequest) -> bool:
        """Tell whether one such actor fits on it while it is empty."""
        return self.holds(request) > 0

    def holds(self, request: ResourceRequest) -> float:
        """Return how many such actors fit on all `count` while they are empty."""
        if not request.labels.items() <= self.labels.items():
            return 0.0
        fitting = []
        for name, number in request.needs.items():
            if number:
                share = self.offers.get(name, 0.0) / number
                fitting.append(math.floor(share + _ROUNDING))
        return self.count * min(fitting, default=math.inf)


def check_capacity(requests: list[ResourceRequest]) -> None:
    """Check that all of these can run at the same time.

    Counted are the nodes that Ray has, and those that its autoscaler may start.

    Raises:
        RecipeError: They never could. The message says what is missing.
    """
    _check([requests])


def check_stages(recipe: Recipe, stages: Iterable[str]) -> None:
    """Check, before the first stage is paid for, that each can run by itself.

    Raises:
        RecipeError: As `check_capacity`.
    """
    requests: list[ResourceRequest] = []
    for stage in stages:
        requests += requests_of(recipe, stage)
    _check([[request] for request in requests])


def grows() -> bool:
    """Tell whether an autoscaler may start more nodes, as far as it says."""
    try:
        # The head is one of them, and does not grow.
        return len([*_autoscaled()]) > 1
    except OSError:
        return False


def _check(groups: list[list[ResourceRequest]]) -> None:
    """Check groups of requests; those of one group run at the same time."""
    try:
        kinds = [*_autoscaled()]
    except OSError:  # there is an autoscaler, and it does not say what it may start
        return
    alive = [*_alive()]
    for requests in groups:
        nodes = alive
        if kinds:
            # A node that an autoscaler has started counts as one of its kind.
            special = [node for node in alive if _adds_to(kinds, node, requests)]
            nodes = kinds + special
        _check_on(nodes, requests)


def _check_on(nodes: list[Node], requests: list[ResourceRequest]) -> None:
    for request in requests:
        if not any(node.suits(request) for node in nodes):
            names = [name for name in request.needs if ":" not in name]
            largest = ", ".join(f"{most(nodes, name):g} {name}" for name in names)
            raise RecipeError(
                f"{request}: no node of the cluster has that. The largest has "
                f"{largest}. {_REMEDY}"
            )
    # Each group of requests has to find enough on the nodes that suit one of them.
    # There are 2^n groups, of the few models that a stage calls at a time.
    sizes = range(1, len(requests) + 1)
    groups = chain.from_iterable(combinations(requests, size) for size in sizes)
    for group in groups:
        suiting = [
            node for node in nodes if any(node.suits(request) for request in group)
        ]
        for name in ("CPU", "GPU"):
            wanted = sum(
                request.count * request.needs.get(name, 0.0) for request in group
            )
            offered = sum(node.count * node.offers.get(name, 0.0) for node in suiting)
            if wanted > offered:
                who = "; ".join(map(str, group))
                raise RecipeError(
                    f"{who}: together {wanted:g} {name}, and such nodes have "
                    f"{offered:g} at most. {_REMEDY}"
                )
    # Sums can be enough where the pieces do not fit: three actors of 3 CPUs need 9, but
    # two nodes of 5 CPUs hold two of them.
    for request in requests:
        capacity = sum(node.holds(request) for node in nodes)
        if capacity < request.count:
            raise RecipeError(
                f"{request}: its nodes have room for {capacity:g} of them at most. "
                f"{_REMEDY}"
            )


def requests_of(recipe: Recipe, stage: str) -> Iterator[ResourceRequest]:
    """Yield the least that a stage's actors and workers ask for.

    Models at endpoints ask for what the actors need that call them.
    """
    for section in recipe.scheduled(stage):
        if isinstance(section, Serve):
            yield of_engines(recipe, 1)
        elif isinstance(section, Training):
            yield of_workers(section, stage)
        elif isinstance(section, ModelSection):
            yield ResourceRequest.of(section, section.actors, section.model)


def of_workers(section: Training, stage: str) -> ResourceRequest:
    """Return the request of a stage's training workers."""
    return ResourceRequest.each(
        section,
        section.cpus_per_worker,
        section.gpus_per_worker,
        section.workers,
        f"{stage}'s workers",
    )


def of_engines(recipe: Recipe, engines: int) -> ResourceRequest:
    """Return the request of the endpoint, for this number of different engines."""
    count = engines * recipe.serve.replicas
    return ResourceRequest.of(recipe.serve, count, "the endpoint's engines")


def most(nodes: list[Node], name: str) -> float:
    """Return the most of a resource that one node has."""
    return max((node.offers.get(name, 0.0) for node in nodes), default=0.0)


def _alive() -> Iterator[Node]:
    import ray

    for node in ray.nodes():
        if node["Alive"]:
            yield Node(node["Resources"], node.get("Labels") or {})


def _adds_to(kinds: list[Node], node: Node, requests: list[ResourceRequest]) -> bool:
    """Tell whether a request fits on this node, and on no kind of the autoscaler.

    A node detects some resources by itself when it starts, such as its accelerator's
    type. The description of its kind need not name them.
    """
    for request in requests:
        suits_kind = any(kind.suits(request) for kind in kinds)
        if node.suits(request) and not suits_kind:
            return True
    return False


def _autoscaled() -> Iterator[Node]:
    """Yield the head, and the kinds that an autoscaler may start beside it.

    Nothing is yielded where there is no autoscaler.
    """
    config = _launcher_config() or _kuberay_config()
    for name, kind in config.get("available_node_types", {}).items():
        count = 1
        if name != config["head_node_type"]:
            all_workers = config["max_workers"]  # the limit of all kinds together
            count = min(kind.get("max_workers", all_workers), all_workers)
        yield Node(kind.get("resources", {}), kind.get("labels", {}), count)


def _launcher_config() -> dict[str, Any]:
    path = Path(_LAUNCHER_CONFIG).expanduser()
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def _kuberay_config() -> dict[str, Any]:
    """Return the RayCluster of this pod in the form of a Ray launcher's file.

    Ray's own autoscaler reads it in the same way. With `enableInTreeAutoscaling`, KubeRay
    lets the account of the head's pod, on which drivers run, read it.

    Raises:
        OSError: This pod has no token, or Kubernetes does not answer, or it refuses.
    """
    if not all(name in os.environ for name in _KUBERAY_VARIABLES):
        return {}
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    name, namespace = (os.environ[name] for name in _KUBERAY_VARIABLES)
    client = node_provider.KubernetesHttpApiClient(namespace)
    cluster = client.get(f"rayclusters/{name}")
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
