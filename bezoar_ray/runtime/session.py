"""Ray for a run: the cluster that this process belongs to, or a local one of its own."""

import contextlib
import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.runtime.capacity import grows
from bezoar_ray.runtime.orphans import guarded
from bezoar_ray.store import Store

if TYPE_CHECKING:
    from ray.data import DataContext
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_PROXY_PATIENCE = "120"  # seconds; Serve kills a proxy that a busy laptop starts more slowly than in 5
SETTINGS = {  # on this machine not a runtime_env: workers that Ray starts beforehand could not be used with one
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": _PROXY_PATIENCE,
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": _PROXY_PATIENCE,
}
_LOCAL_CPUS = 4  # logical: on two cores, Ray Data's tasks and an engine's actor would wait for each other for ever
_SHARED = (
    "Use a folder that is mounted on all of them (NFS), or a bucket: s3://…, gs://…"
)
_STARTS = 3  # Ray gives itself 30 s to start, which a busy laptop may miss


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Ray, initialised. A local one ends with the block, and dies with this process."""
    import ray

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault(
        "RAY_CHDIR_TO_TRIAL_DIR", "0"
    )  # a recipe's relative paths hold in training workers, too
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        stop_on_sigterm()
        yield
        return
    with guarded():
        _start_local()
        stop_on_sigterm()
        try:
            yield
        finally:
            ray.shutdown()


def stop_on_sigterm() -> None:
    """From now on SIGTERM (a preempted node, a stopped job) is as Ctrl-C. `ray.init` sets a handler of its own."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def check_shared(store: Store) -> None:
    """See that every node of the cluster has the run directory before it.

    Raises:
        RecipeError: it is a folder, and some nodes do not see it, and are named; or those that come would not.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if (
        not store.remote
        and len(nodes) == 1
        and grows()
        and os.stat(store.root).st_dev == os.stat("/").st_dev
    ):
        raise RecipeError(
            f"--run-dir {store.root}: on the head's own disk, where nodes to come do not see it. {_SHARED}"
        )
    if store.remote or len(nodes) == 1:
        return
    token = uuid.uuid4().hex
    store.replace(".seen-by-all", token)
    looks = [
        ray.remote(_sees)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                node["NodeID"], soft=False
            ),
        )
        .remote(str(store.root), token)
        for node in nodes
    ]
    blind = [
        node["NodeManagerHostname"]
        for node, seen in zip(nodes, ray.get(looks), strict=True)
        if not seen
    ]
    store.remove(".seen-by-all")
    if blind:
        raise RecipeError(
            f"--run-dir {store.root}: {', '.join(blind)} of the cluster's {len(nodes)} nodes do not see it. {_SHARED}"
        )


def unseen(root: str, which: str) -> str:
    """What to say of this node, where it does not see the run directory; `which` says what it is to the run."""
    return (
        f"{root}: node {socket.gethostname()}, {which}, does not see this folder. "
        "Mount the same disk on every node, or use a bucket (s3://, gs://) as run directory"
    )


def _sees(root: str, token: str) -> bool:
    try:
        return Store(root).read(".seen-by-all") == token.encode()
    except (OSError, BezoarError):
        return False


def beside_driver() -> "NodeAffinitySchedulingStrategy":
    """Ray's scheduling strategy for what must not be lost with another node, or talks to the driver's localhost."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )


def own_address() -> str:
    """The address under which the cluster's other nodes reach this process; localhost where there are none."""
    import ray

    return (
        ray.util.get_node_ip_address() if os.environ.get("RAY_ADDRESS") else "127.0.0.1"
    )


def _start_local() -> None:
    import ray

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=max(_LOCAL_CPUS, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=2**29,
            )
            return
        except Exception as error:  # Ray raises a bare one
            if left == 0 or "timed out during startup" not in str(error):
                raise BezoarError(
                    f"Ray does not start on this machine: {error}"
                ) from error
            ray.shutdown()


@contextlib.contextmanager
def errors_as_raised() -> Iterator[None]:
    """Within the block, an error of ours in a Ray task comes as it was raised there, without Ray's traceback."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BezoarError):
            raise error.cause from None
        raise


def quieten(context: "DataContext") -> None:
    """Ray Data leaves the terminal to our own line."""
    logging.getLogger("ray.data").setLevel(
        logging.CRITICAL
    )  # what ends a pass is raised
    context.enable_progress_bars = context.print_on_execution_start = False
