"""Ray for a run: the cluster that this process belongs to, or a local one of its own."""

import contextlib
import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.runtime.capacity import grows
from bezoar_ray.runtime.orphans import guarded
from bezoar_ray.store import Store

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.data import DataContext
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Serve kills a proxy that has not started in 5 s, which a busy laptop may miss.
_PROXY_TIMEOUT_SECONDS = "120"
SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": _PROXY_TIMEOUT_SECONDS,
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": _PROXY_TIMEOUT_SECONDS,
}
"""Environment variables of the processes that Ray starts on this machine.

They are not a runtime_env: with one, the workers that Ray starts beforehand could not be
used.
"""
# Logical ones. On two cores, Ray Data's tasks and an engine's actor would wait for each
# other forever.
_LOCAL_CPUS = 4
_LOCAL_OBJECT_STORE_BYTES = 2**29
_START_ATTEMPTS = 3  # Ray gives itself 30 s to start, which a busy laptop may miss
_SEEN_FILE = ".seen-by-all"
_SHARED = (
    "Use a folder that is mounted on all of them (NFS), or a bucket: s3://…, gs://…"
)


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Initialize Ray for the block.

    It connects to the cluster of RAY_ADDRESS, or starts a local Ray that ends with the
    block and dies with this process.
    """
    import ray

    # launcher.py and reporting.py use what only V2 has: label selectors, upload modes.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # A recipe's relative paths are then valid in training workers, too.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
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
    """Treat SIGTERM (a preempted node, a stopped job) like Ctrl-C from now on.

    Call it after `ray.init`, which sets a handler of its own.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def check_shared(store: Store) -> None:
    """Check that every node of the cluster sees the run directory.

    Raises:
        RecipeError: It is a folder, and some nodes do not see it or nodes to come would
            not.
    """
    import ray

    if store.remote:
        return
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        # A disk of its own, on the other hand, may be mounted on the nodes to come.
        if grows() and os.stat(store.root).st_dev == os.stat("/").st_dev:
            raise RecipeError(
                f"--run-dir {store.root}: on the head's own disk, where nodes to come "
                f"do not see it. {_SHARED}"
            )
        return
    # A token, since a node may have a folder of this name on its own disk.
    token = uuid.uuid4().hex
    store.replace(_SEEN_FILE, token)
    answers = [_look_from(node, store, token) for node in nodes]
    blind = []
    for node, sees in zip(nodes, ray.get(answers), strict=True):
        if not sees:
            blind.append(node["NodeManagerHostname"])
    store.remove(_SEEN_FILE)
    if blind:
        raise RecipeError(
            f"--run-dir {store.root}: {', '.join(blind)} of the cluster's {len(nodes)} "
            f"nodes do not see it. {_SHARED}"
        )


def _look_from(node: dict[str, Any], store: Store, token: str) -> "ObjectRef[bool]":
    """Read the token on a node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(_sees).options(num_cpus=0, scheduling_strategy=on_node)
    return task.remote(str(store.root), token)


def _sees(root: str, token: str) -> bool:
    try:
        return Store(root).read(_SEEN_FILE) == token.encode()
    except (OSError, BezoarError):
        return False


def unseen(root: str, which: str) -> str:
    """Return the message for a node that does not see the run directory.

    Args:
        root: The run directory.
        which: What this node is to the run.
    """
    return (
        f"{root}: node {socket.gethostname()}, {which}, does not see this folder. "
        "Mount the same disk on every node, or use a bucket (s3://, gs://) as run "
        "directory"
    )


def beside_driver() -> "NodeAffinitySchedulingStrategy":
    """Return Ray's scheduling strategy for actors on the driver's node.

    It is for those that must not be lost with another node, or that use the driver's
    localhost.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node, soft=False)


def own_address() -> str:
    """Return the address at which the cluster's other nodes reach this process.

    It is localhost for a local Ray, which has no other nodes.
    """
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return ray.util.get_node_ip_address()
    return "127.0.0.1"


def _start_local() -> None:
    import ray

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for attempts_left in reversed(range(_START_ATTEMPTS)):
        try:
            ray.init(
                # Otherwise Ray would join a cluster that it finds
                # running on this machine.
                address="local",
                num_cpus=max(_LOCAL_CPUS, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            )
            return
        except Exception as error:  # Ray raises a bare one
            timed_out = "timed out during startup" in str(error)
            if not (timed_out and attempts_left):
                raise BezoarError(
                    f"Ray does not start on this machine: {error}"
                ) from error
            # The part of it that has started is in the way of the next attempt.
            ray.shutdown()


@contextlib.contextmanager
def errors_as_raised() -> Iterator[None]:
    """Raise our own errors in Ray tasks as they were raised, without Ray's traceback."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BezoarError):
            raise error.cause from None
        raise


def quieten(context: "DataContext") -> None:
    """Have Ray Data print nothing: the terminal shows the line of our own progress."""
    # What ends a pipeline is raised as well.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
