"""All checkpoints of a run directory on Ray Serve, at one OpenAI-compatible address.

A joined checkpoint is one LoRA on the untouched base that holds its whole chain of
adapters. One vLLM engine serves base and all joined checkpoints. Their greedy answers
are those of the merged models. A checkpoint that is served merged has an engine of its
own, behind a router.
"""

import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import Recipe, recipe_of
from bezoar_ray.runtime.capacity import check_capacity, of_engines
from bezoar_ray.runtime.logs import event
from bezoar_ray.runtime.session import beside_driver
from bezoar_ray.serve.arguments import (
    engine_of_each,
    modes,
    modes_with_reward_model,
)
from bezoar_ray.serve.auth import required_key
from bezoar_ray.serve.replica import (
    DRAIN_SECONDS,
    LOG,
    engine_application,
    router_application,
)
from bezoar_ray.stages import BASE, trained_checkpoint_names
from bezoar_ray.store import Store

if TYPE_CHECKING:
    from ray.serve import Application, RunTarget

_ROUTER = "router"
_POLL_SECONDS = 5.0  # between two checks for retrained checkpoints
_QUIET = {"log_level": "WARNING", "enable_access_log": False}

Applications = Mapping[str, Mapping[str, str | None]]
"""For each engine, the fingerprint of each checkpoint that it serves.

The router's entry maps each checkpoint to the name of its engine instead.
"""


@contextlib.contextmanager
def running(recipe: Recipe, store: Store) -> Iterator[str]:
    """Serve every checkpoint of the run directory on the initialized Ray.

    Yields:
        The base URL, `http://127.0.0.1:PORT/v1`.

    Raises:
        RecipeError: the cluster's Ray Serve already hosts something else.
        BezoarError: an engine did not start; the message ends with the last lines of
            its log.
    """
    with _serving(store, "127.0.0.1", _free_port()) as base_url:
        ServedCheckpoints(recipe, store, key=None).deploy()
        yield base_url


def serve_forever(recipe: Recipe, store: Store) -> None:
    """Serve at the recipe's `serve.host` and `serve.port` until the process is stopped.

    A retrained checkpoint replaces the old one. Requests wait for it; none is dropped.

    Raises:
        RecipeError: other machines can reach the host, but BEZOAR_API_KEY is not set.
            Or as `running`.
        BezoarError: as `running`.
    """
    key = required_key(recipe.serve.host, os.environ.get("BEZOAR_API_KEY"))
    served = ServedCheckpoints(recipe, store, key, modes_with_reward_model)
    with _serving(store, recipe.serve.host, recipe.serve.port) as base_url:
        served.deploy()
        names = list(modes_with_reward_model(recipe, store))
        writers = list(modes(recipe, store))
        greeting = _greeting(base_url, names, writers[-1], with_key=key is not None)
        print(greeting, flush=True)
        try:
            while True:
                time.sleep(_POLL_SECONDS)
                try:
                    served.replace_retrained()
                except BezoarError as error:
                    # What is served stays served while a bucket or a new
                    # checkpoint is at fault.
                    print(error, flush=True)
        except KeyboardInterrupt:
            print(
                "stopping after the requests in flight are answered, "
                f"or after {DRAIN_SECONDS:.0f} s",
                flush=True,
            )


def build_app(args: dict[str, str]) -> "Application":
    """Build the application of a Serve config file.

    The file names it: `import_path: bezoar_ray.serve.app:build_app`, with
    `args: {run_dir: s3://…}`.

    Raises:
        RecipeError: BEZOAR_API_KEY is not set. Such an endpoint is there for others.
        BezoarError: the folder is not a run directory, it has no checkpoints, or its
            checkpoints need several engines.
    """
    store = Store(args["run_dir"])
    recipe = recipe_of(store)
    engines = engine_of_each(modes(recipe, store))
    if len(set(engines.values())) > 1:
        raise BezoarError(
            f"{store.root}: {', '.join(engines)} need several engines, and a Serve config file deploys one. "
            "Use `bezoar serve`"
        )
    key = required_key("0.0.0.0", os.environ.get("BEZOAR_API_KEY"))
    return engine_application(BASE, recipe, str(store.root), key)


def _greeting(base_url: str, names: list[str], example: str, with_key: bool) -> str:
    """Return what is served where, with a request to one of the checkpoints."""
    import ray

    header = ' -H "Authorization: Bearer $BEZOAR_API_KEY"' if with_key else ""
    body = f'{{"model": "{example}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    node = next(node for node in ray.nodes() if node["Alive"])
    return (
        f"ready: {', '.join(names)} at {base_url}\n"
        f"metrics for Prometheus: http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics\n"
        f"try: curl {base_url}/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'"
    )


class ServedCheckpoints:
    """The applications on Ray Serve: one for each engine, and a router if there are several."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        key: str | None,
        find_modes: Callable[[Recipe, Store], dict[str, str]] = modes,
    ):
        self._find_modes = find_modes
        self._recipe = recipe
        self._store = store
        self._key = key
        self._deployed: Applications = {}
        # The last state that could not be deployed. It was reported once.
        self._refused: Applications = {}

    def deploy(self) -> None:
        """Deploy the applications that differ from those that run.

        Raises:
            RecipeError: the cluster can never have enough resources for the engines.
            BezoarError: an engine did not start.
        """
        from ray import serve

        wanted = self._wanted()
        engines = [name for name in wanted if name != _ROUTER]
        check_capacity([of_engines(self._recipe, len(engines))])
        log = self._store.log(LOG)
        # The lines below must not be those of an earlier failure.
        log.write_text("")
        changed = []
        for name, contents in wanted.items():
            if contents != self._deployed.get(name):
                changed.append(self._target(name, wanted))
        try:
            serve.run_many(changed)
        except RuntimeError as error:
            last_lines = log.read_text(errors="replace").splitlines()[-15:]
            raise BezoarError(
                f"the endpoint did not start: {error}\n"
                f"Last lines of {self._store.where(LOG)}:\n" + "\n".join(last_lines)
            ) from error
        self._deployed = wanted

    def replace_retrained(self) -> None:
        """Replace the checkpoints that were retrained since they were deployed.

        Nothing is replaced while a checkpoint is being trained. A deployment that
        failed is not tried again until another checkpoint changes.

        Raises:
            BezoarError: the run directory cannot be read, or a new engine did not
                start. With several replicas the old ones continue to serve. A single
                replica has already stopped.
        """
        fingerprints = self._fingerprints()
        names = set(self._find_modes(self._recipe, self._store))
        # Those that are served, too: one in training has no folder that tells its mode.
        for served in self._deployed.values():
            names.update(served)
        if not all(fingerprints[name] for name in names):
            # Training is running: it removes a checkpoint first and writes its lineage
            # last.
            return
        wanted = self._wanted()
        if wanted in (self._deployed, self._refused):
            return
        if self._changes_routing(wanted):
            print(
                "the checkpoints now need a different number of engines. "
                "Stop `bezoar serve` and start it again to serve them",
                flush=True,
            )
            self._refused = wanted
            return
        print("a checkpoint was retrained; replacing it", flush=True)
        # The recipe's present base: the new checkpoint was trained on it.
        base = recipe_of(self._store).base
        self._recipe = self._recipe.model_copy(update={"base": base})
        try:
            self.deploy()
        except Exception as error:
            self._refused = wanted
            raise BezoarError(f"not replaced: {error}") from error
        print("replaced", flush=True)

    def _changes_routing(self, wanted: Applications) -> bool:
        """Return whether a router is needed now but was not before, or the reverse.

        A single engine has the route `/` itself; with several, the router has it.
        `deploy` does not move a route from one running application to another.
        """
        before, after = len(self._deployed), len(wanted)
        return before != after and 1 in (before, after)

    def _fingerprints(self) -> dict[str, str | None]:
        """Return the fingerprint of each checkpoint's weights; None without them."""
        fingerprints = {}
        for name in (BASE, *trained_checkpoint_names()):
            lineage = self._store.read_json(layout.checkpoint(name).lineage)
            fingerprints[name] = lineage["fingerprint"] if lineage else None
        return fingerprints

    def _wanted(self) -> Applications:
        """Return the applications that the run directory needs now.

        Raises:
            BezoarError: there is no base checkpoint.
        """
        fingerprints = self._fingerprints()
        if fingerprints[BASE] is None:
            raise BezoarError(
                f"{self._store.root} has no checkpoints. Run the sft stage first"
            )
        engine_of = engine_of_each(self._find_modes(self._recipe, self._store))
        applications: dict[str, dict[str, str | None]] = {}
        for name, engine in engine_of.items():
            applications.setdefault(engine, {})[name] = fingerprints[name]
        if len(applications) > 1:
            applications[_ROUTER] = dict(engine_of)
        return applications

    def _target(self, name: str, wanted: Applications) -> "RunTarget":
        """Describe one application for Serve."""
        from ray import serve

        section = self._recipe.serve
        if name == _ROUTER:
            application_of = {}
            for checkpoint, engine in wanted[name].items():
                if engine:
                    application_of[checkpoint] = _serve_name(self._store, engine)
            application = router_application(application_of, section, self._key)
        else:
            root = str(self._store.root)
            application = engine_application(name, self._recipe, root, self._key)
        has_address = name == _ROUTER or len(wanted) == 1
        route = "/" if has_address else None
        return serve.RunTarget(
            application, _serve_name(self._store, name), route, _QUIET
        )


def _serve_name(store: Store, name: str) -> str:
    """Name an application on Serve, so that it shows its run directory."""
    root = str(store.root).encode()
    root_digest = hashlib.sha256(root).hexdigest()
    return f"{name}-{root_digest[:8]}"


@contextlib.contextmanager
def _serving(store: Store, host: str, port: int) -> Iterator[str]:
    """Start Serve without an application, yield its base URL, and stop it at the end."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # First, since only the lock tells leftovers from what a living command serves.
    with _lock_on_cluster(store):
        _remove_leftovers(store)
        _check_port_is_free(host, port)
        serve.start(
            # By default, a proxy would also listen on every other node with a replica.
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config=_QUIET,
        )
        try:
            yield f"http://{_reachable_host(host)}:{port}/v1"
        finally:
            _stop_serve()


def _reachable_host(host: str) -> str:
    """Return a host for URLs on this machine."""
    if host == "0.0.0.0":
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


class _ClusterLock:
    """An actor whose name is taken as long as the command that created it runs."""


@contextlib.contextmanager
def _lock_on_cluster(store: Store) -> Iterator[None]:
    """Keep other commands from serving this run directory on this cluster.

    Raises:
        RecipeError: another command serves it now. Its applications are not leftovers.
    """
    import ray

    options = {
        "num_cpus": 0,
        "name": _serve_name(store, "claim"),
        "namespace": "bezoar_ray",
    }
    strategy = beside_driver()
    actor_class: Any = ray.remote(_ClusterLock)
    try:
        # Ray refuses a second actor of this name, and ends the first with its driver.
        lock = actor_class.options(scheduling_strategy=strategy, **options).remote()
    except ValueError as error:
        raise RecipeError(
            f"{store.root} is served on this cluster already, by `bezoar serve` or by a run that evaluates. "
            "Stop that command first, or use another cluster"
        ) from error
    try:
        yield
    finally:
        ray.kill(lock)


def _check_port_is_free(host: str, port: int) -> None:
    """Check that no other process listens on the port.

    Serve's proxy would share the port with it, and each would get some of the requests.

    Raises:
        RecipeError: the port is in use.
    """
    if os.environ.get("RAY_ADDRESS"):  # the proxy is on the cluster's head node
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # A port with closed connections in TIME_WAIT is free as well.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RecipeError(
                f"serve.host {host}, serve.port {port}: {error.strerror}. Stop the process that uses the port, "
                f"or use another: --set serve.port={port + 1}"
            ) from error


def _remove_leftovers(store: Store) -> None:
    """Stop the applications that a killed command of this run directory left behind.

    Raises:
        RecipeError: Serve hosts applications of others. It has one address for all of
            them, and they are not ours to stop.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    if _get_global_client(raise_if_no_controller_running=False) is None:
        return
    names = (BASE, *trained_checkpoint_names(), _ROUTER)
    leftovers = {_serve_name(store, name) for name in names}
    others = serve.status().applications.keys() - leftovers
    if others:
        raise RecipeError(
            f"the cluster's Ray Serve hosts {', '.join(sorted(others))} already, and has only one address. "
            "Stop that first (`serve shutdown`, or the `bezoar serve` that started it), or use another cluster"
        )
    _stop_serve()


def _stop_serve() -> None:
    """Stop the applications after their requests in flight, then Serve itself."""
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client, _set_global_client

    client = _get_global_client()
    if client is None:
        return
    # Not `serve.shutdown`: Ray reports one of its calls to the user as failed. A
    # blocking `delete` waits a minute only, less than the replicas have.
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    # Serve kills a replica that exceeds its graceful_shutdown_timeout_s.
    _wait_until(lambda: not serve.status().applications)
    ray.get(client._controller.graceful_shutdown.remote(wait=False))
    _wait_until(lambda: not _serve_has_actors())
    # As `serve.shutdown` does: the next endpoint of this process needs a new client.
    _set_global_client(None)


def _serve_has_actors() -> bool:
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["namespace"] == "serve" for actor in actors)


def _wait_until(done: Callable[[], bool]) -> None:
    """Wait until `done()` is true, at most twice as long as a replica may take to stop.

    Ray stops whatever is left when its session ends.
    """
    deadline = time.monotonic() + 2 * DRAIN_SECONDS
    while not done():
        if time.monotonic() > deadline:
            event("the endpoint did not stop in time", logging.WARNING)
            return
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
