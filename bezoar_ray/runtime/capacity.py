"""Whether a cluster can ever give what a stage asks for: if it cannot, that is said at once, and not waited for."""

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

_LAUNCHED = "~/ray_bootstrap_config.yaml"  # the cluster's file, as Ray's launcher leaves it on the head, with drivers
_ON_KUBERAY = ("RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE")  # variables of its pods
_REMEDY = "Lower what the recipe asks for, or start nodes that have it; stages can also run one by one (--stages)"


@dataclass(frozen=True)
class ResourceRequest:
    """So many actors, each of which needs these resources on one node."""

    who: str
    count: int
    needs: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, part: ModelSection | Serve, count: int, who: str) -> "ResourceRequest":
        """What the actors of a recipe's section ask for."""
        return cls.each(part, part.num_cpus, part.num_gpus, count, who)

    @classmethod
    def each(
        cls, part: SchedulingSection, cpus: float, gpus: float, count: int, who: str
    ) -> "ResourceRequest":
        """The same, where the section says CPUs and GPUs by other names."""
        kind = (
            {f"accelerator_type:{part.accelerator_type}": 0.001}
            if part.accelerator_type
            else {}
        )
        return cls(
            who,
            count,
            {name: n for name, n in {"CPU": cpus, "GPU": gpus, **kind}.items() if n},
            part.node_labels,
        )

    def __str__(self) -> str:
        needs = ", ".join(
            f"{number:g} {name}"
            for name, number in self.needs.items()
            if number >= 0.01
        )
        kind = "".join(
            f" of kind {name.partition(':')[2]}" for name in self.needs if ":" in name
        )
        labels = f" on nodes labelled {self.labels}" if self.labels else ""
        return f"{self.who} ({self.count} actors with {needs or 'nothing'}{kind} each{labels})"


@dataclass
class Node:
    """A node that is there, or of which an autoscaler may start `count`."""

    offers: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)
    count: float = 1

    def suits(self, ask: ResourceRequest) -> bool:
        """Whether one such actor fits on it while it is empty."""
        return self.holds(ask) > 0

    def holds(self, ask: ResourceRequest) -> float:
        """How many such actors fit on all `count` while they are empty."""
        if not ask.labels.items() <= self.labels.items():
            return 0.0
        shares = [
            self.offers.get(name, 0.0) / number
            for name, number in ask.needs.items()
            if number
        ]
        return self.count * min(
            (math.floor(share + 1e-6) for share in shares), default=math.inf
        )


def check_capacity(asks: list[ResourceRequest]) -> None:
    """See that all of these can run at the same time on the nodes that Ray has, or that its autoscaler may start.

    Raises:
        RecipeError: they never could; the message says what is missing.
    """
    _check([asks])


def check_stages(recipe: Recipe, stages: Iterable[str]) -> None:
    """See, before the first stage is paid for, that each will find room by itself.

    Raises:
        RecipeError: as `check_capacity`.
    """
    _check([[ask] for stage in stages for ask in requests_of(recipe, stage)])


def grows() -> bool:
    """Whether an autoscaler may start further nodes, as far as it tells."""
    try:
        return len([*_autoscaled()]) > 1
    except OSError:
        return False


def _check(together: list[list[ResourceRequest]]) -> None:
    try:
        kinds = [*_autoscaled()]
    except OSError:  # an autoscaler that does not tell us what it may start
        return
    alive = [*_alive()]
    for asks in together:
        beside = (
            alive
            if not kinds
            else [node for node in alive if _only_there(node, kinds, asks)]
        )
        _check_on(kinds + beside, asks)


def _check_on(nodes: list[Node], asks: list[ResourceRequest]) -> None:
    for ask in asks:
        if not any(node.suits(ask) for node in nodes):
            largest = ", ".join(
                f"{most(nodes, name):g} {name}" for name in ask.needs if ":" not in name
            )
            raise RecipeError(
                f"{ask}: no node of the cluster has that. The largest has {largest}. {_REMEDY}"
            )
    for some in chain.from_iterable(
        combinations(asks, size + 1) for size in range(len(asks))
    ):
        theirs = [node for node in nodes if any(node.suits(ask) for ask in some)]
        for name in ("CPU", "GPU"):
            wanted = sum(ask.count * ask.needs.get(name, 0.0) for ask in some)
            there = sum(node.count * node.offers.get(name, 0.0) for node in theirs)
            if wanted > there:
                who = "; ".join(map(str, some))
                raise RecipeError(
                    f"{who}: together {wanted:g} {name}, and such nodes have {there:g} at most. {_REMEDY}"
                )
    for ask in asks:
        if (room := sum(node.holds(ask) for node in nodes)) < ask.count:
            raise RecipeError(
                f"{ask}: its nodes have room for {room:g} of them at most. {_REMEDY}"
            )


def requests_of(recipe: Recipe, stage: str) -> Iterator[ResourceRequest]:
    """What a stage's actors and workers ask for, at least. Models at endpoints ask for what their actors do."""
    for section in recipe.scheduled(stage):
        if isinstance(section, Serve):
            yield of_engines(recipe, 1)
        elif isinstance(section, Training):
            yield of_workers(section, stage)
        elif isinstance(section, ModelSection):
            yield ResourceRequest.of(section, section.actors, section.model)


def of_workers(part: Training, stage: str) -> ResourceRequest:
    """The request of a stage's training workers."""
    return ResourceRequest.each(
        part,
        part.cpus_per_worker,
        part.gpus_per_worker,
        part.workers,
        f"{stage}'s workers",
    )


def of_engines(recipe: Recipe, engines: int) -> ResourceRequest:
    """What the endpoint asks for, of so many engines."""
    return ResourceRequest.of(
        recipe.serve, engines * recipe.serve.replicas, "the endpoint's engines"
    )


def most(nodes: list[Node], name: str) -> float:
    """The most of a resource that a node has."""
    return max((node.offers.get(name, 0.0) for node in nodes), default=0.0)


def _alive() -> Iterator[Node]:
    import ray

    for node in ray.nodes():
        if node["Alive"]:
            yield Node(node["Resources"], node.get("Labels") or {})


def _only_there(node: Node, kinds: list[Node], asks: list[ResourceRequest]) -> bool:
    """Whether one of these fits on this node, but on none of the kinds: what a node finds by itself when it starts,
    such as its accelerator's type, a kind need not say."""
    return any(
        node.suits(ask) and not any(kind.suits(ask) for kind in kinds) for ask in asks
    )


def _autoscaled() -> Iterator[Node]:
    """The head, and what an autoscaler may start beside it; nothing where there is none."""
    config = _of_launcher() or _of_kuberay()
    for name, kind in config.get("available_node_types", {}).items():
        most = config["max_workers"]  # of all kinds together
        count = (
            1
            if name == config["head_node_type"]
            else min(kind.get("max_workers", most), most)
        )
        yield Node(kind.get("resources", {}), kind.get("labels", {}), count)


def _of_launcher() -> dict[str, Any]:
    path = Path(_LAUNCHED).expanduser()
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def _of_kuberay() -> dict[str, Any]:
    """The RayCluster of this pod, in the words of Ray's launcher, as Ray's own autoscaler reads it.

    With `enableInTreeAutoscaling`, KubeRay lets the account of the head's pod, on which drivers run, read it.

    Raises:
        OSError: this pod has no token, or Kubernetes does not answer, or refuses.
    """
    if not all(name in os.environ for name in _ON_KUBERAY):
        return {}
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    name, namespace = (os.environ[name] for name in _ON_KUBERAY)
    found = node_provider.KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(found)
