"""The family of checkpoints on Ray Serve: one vLLM engine, the untouched base with one joined LoRA per checkpoint.

Joined LoRAs give the same greedy text as the merged models, so a single engine start serves all checkpoints.
Checkpoints that are served merged have an engine each, behind a router.
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
from bezoar_ray.serve.arguments import hosted, modes
from bezoar_ray.serve.auth import key_for
from bezoar_ray.serve.replica import DRAIN_SECONDS, LOG, engine, router
from bezoar_ray.stages import BASE, checkpoint_names
from bezoar_ray.store import Store

if TYPE_CHECKING:
    from ray.serve import Application, RunTarget

_ROUTER = "router"
_LOOK_SECONDS = 5.0  # between two looks at whether a checkpoint was trained anew
_QUIET = {"log_level": "WARNING", "enable_access_log": False}


@contextlib.contextmanager
def running(recipe: Recipe, store: Store) -> Iterator[str]:
    """Serve every checkpoint of the run directory on the initialised Ray; yields `http://127.0.0.1:PORT/v1`.

    Raises:
        RecipeError: the cluster's Ray Serve hosts something else already.
        BezoarError: an engine did not start; the message ends with the last lines of its log.
    """
    with _serving(store, "127.0.0.1", _free_port()) as base_url:
        Family(recipe, store, key=None).deploy()
        yield base_url


def serve_forever(recipe: Recipe, store: Store) -> None:
    """`bezoar serve`: the family at the recipe's `serve.host` and `serve.port`, until the process is stopped.

    A checkpoint that is trained anew takes the old one's place; requests wait meanwhile, and none is dropped.

    Raises:
        RecipeError: an address that others can reach without a key in BEZOAR_API_KEY; or as `running`.
    """
    key = key_for(recipe.serve.host, os.environ.get("BEZOAR_API_KEY"))
    family = Family(recipe, store, key)
    with _serving(store, recipe.serve.host, recipe.serve.port) as base_url:
        family.deploy()
        print(
            _greeting(base_url, list(modes(recipe, store)), guarded=key is not None),
            flush=True,
        )
        try:
            while True:
                time.sleep(_LOOK_SECONDS)
                try:
                    family.follow()
                except BezoarError as error:
                    print(error, flush=True)
        except KeyboardInterrupt:
            print(
                f"stopping, once what was asked is answered, or in {DRAIN_SECONDS:.0f} s",
                flush=True,
            )


def family(args: dict[str, str]) -> "Application":
    """The application of a Serve config file (`import_path: bezoar_ray.serve.app:family`, `args: {run_dir: s3://…}`).

    Raises:
        RecipeError: there is no key in BEZOAR_API_KEY; such a file's endpoint is there for others.
        BezoarError: the folder is no run directory, or holds no checkpoints, or such as need several engines.
    """
    store = Store(args["run_dir"])
    recipe = recipe_of(store)
    hosts = hosted(modes(recipe, store))
    if len(set(hosts.values())) > 1:
        raise BezoarError(
            f"{store.root}: {', '.join(hosts)} need several engines; `bezoar serve` puts them together"
        )
    return engine(
        BASE,
        recipe,
        str(store.root),
        key_for("0.0.0.0", os.environ.get("BEZOAR_API_KEY")),
    )


def _greeting(base_url: str, names: list[str], guarded: bool) -> str:
    import ray

    header = ' -H "Authorization: Bearer $BEZOAR_API_KEY"' if guarded else ""
    body = f'{{"model": "{names[-1]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    node = next(node for node in ray.nodes() if node["Alive"])
    return (
        f"ready: {', '.join(names)} at {base_url}\n"
        f"metrics for Prometheus: http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics\n"
        f"try: curl {base_url}/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'"
    )


class Family:
    """The applications on Ray Serve: one of each engine, and a router where there are several."""

    def __init__(self, recipe: Recipe, store: Store, key: str | None):
        self._recipe, self._store, self._key = recipe, store, key
        self._deployed: Mapping[str, Mapping[str, str | None]] = {}
        self._refused: Mapping[
            str, Mapping[str, str | None]
        ] = {}  # what cannot be put in its place, as was said

    def deploy(self) -> None:
        """Start what is not yet running as the run directory has it; Serve replaces what has changed.

        Raises:
            RecipeError: the cluster never has room for the engines.
            BezoarError: an engine did not start.
        """
        from ray import serve

        wanted = self._wanted()
        engines = len(wanted) - (_ROUTER in wanted)
        check_capacity([of_engines(self._recipe, engines)])
        log = self._store.log(LOG)
        log.write_text("")
        changed = [name for name in wanted if wanted[name] != self._deployed.get(name)]
        try:
            serve.run_many([self._target(name, wanted) for name in changed])
        except RuntimeError as error:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            where = self._store.where(LOG)
            raise BezoarError(
                f"the endpoint did not start: {error}\nLast lines of {where}:\n{tail}"
            ) from error
        self._deployed = wanted

    def follow(self) -> None:
        """Put checkpoints that were trained anew in place of the old ones, once all that are served are whole again.

        Raises:
            BezoarError: the run directory cannot be read, or a new engine did not start; of several replicas the old
                ones serve on, a single one has ended by then. It is not tried again until another checkpoint comes.
        """
        marks, served = (
            self._marks(),
            {model for models in self._deployed.values() for model in models},
        )
        if not all(
            marks[name] for name in served | modes(self._recipe, self._store).keys()
        ):
            return  # training is at it: it begins by removing a checkpoint, and writes the lineage last
        wanted = self._wanted()
        if wanted in (self._deployed, self._refused):
            return
        if len(wanted) != len(self._deployed) and 1 in (
            len(wanted),
            len(self._deployed),
        ):
            print(
                "the checkpoints need another number of engines by now: stop and start again to serve them",
                flush=True,
            )
            self._refused = wanted
            return
        print("a checkpoint was trained anew; it is being replaced", flush=True)
        self._recipe = self._recipe.model_copy(
            update={"base": recipe_of(self._store).base}
        )
        try:
            self.deploy()
        except Exception as error:
            self._refused = wanted
            raise BezoarError(f"not replaced: {error}") from error
        print("replaced", flush=True)

    def _marks(self) -> dict[str, str | None]:
        """The weights of each checkpoint, by their fingerprints."""
        found = {
            name: self._store.read_json(layout.checkpoint(name).lineage)
            for name in checkpoint_names()
        }
        return {
            name: lineage and lineage["fingerprint"] for name, lineage in found.items()
        }

    def _wanted(self) -> Mapping[str, Mapping[str, str | None]]:
        """Each application by its name: the checkpoints that an engine hosts, with their weights; the router's hosts.

        Raises:
            BezoarError: there is no base checkpoint.
        """
        marks, hosts = self._marks(), hosted(modes(self._recipe, self._store))
        if marks[BASE] is None:
            raise BezoarError(
                f"{self._store.root} holds no checkpoints. Run the sft stage first"
            )
        engines = {
            engine: {
                name: marks[name] for name, host in hosts.items() if host == engine
            }
            for engine in hosts.values()
        }
        return engines | ({_ROUTER: hosts} if len(engines) > 1 else {})

    def _target(
        self, name: str, wanted: Mapping[str, Mapping[str, str | None]]
    ) -> "RunTarget":
        from ray import serve

        part = self._recipe.serve
        if name == _ROUTER:
            hosts = {
                model: _named(self._store, host)
                for model, host in wanted[name].items()
                if host
            }
            application = router(hosts, part, self._key)
        else:
            application = engine(name, self._recipe, str(self._store.root), self._key)
        route = "/" if name == _ROUTER or len(wanted) == 1 else None
        return serve.RunTarget(application, _named(self._store, name), route, _QUIET)


def _named(store: Store, name: str) -> str:
    """An application's name on Serve, which tells whose it is."""
    return f"{name}-{hashlib.sha256(str(store.root).encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def _serving(store: Store, host: str, port: int) -> Iterator[str]:
    """Serve without an application yet; ends with the block."""
    import logging

    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _claimed(store):
        _clear(store)
        _check_free(host, port)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config=_QUIET,
        )
        try:
            reachable = (
                "127.0.0.1"
                if host == "0.0.0.0"
                else f"[{host}]"
                if ":" in host
                else host
            )
            yield f"http://{reachable}:{port}/v1"
        finally:
            _stop()


class _Claim:
    """An actor whose name is taken while the command that made it lives."""


@contextlib.contextmanager
def _claimed(store: Store) -> Iterator[None]:
    """No other command serves this run directory on this cluster meanwhile.

    Raises:
        RecipeError: one does, and what it serves is not ours to end.
    """
    import ray

    options = {"num_cpus": 0, "name": _named(store, "claim"), "namespace": "bezoar_ray"}
    try:
        claim: Any = (
            ray.remote(_Claim)
            .options(scheduling_strategy=beside_driver(), **options)
            .remote()
        )
    except ValueError as error:
        raise RecipeError(
            f"{store.root} is served on this cluster already, by `bezoar serve` or by a run that evaluates. "
            "End that first, or use another cluster"
        ) from error
    try:
        yield
    finally:
        ray.kill(claim)


def _check_free(host: str, port: int) -> None:
    """Serve shares its port with whoever else is on it, and each would get some of the requests.

    Raises:
        RecipeError: there is somebody.
    """
    if os.environ.get("RAY_ADDRESS"):  # the proxy is on the cluster's head
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RecipeError(
                f"serve.host {host}, serve.port {port}: {error.strerror}. End what is there, or take another: "
                f"--set serve.port={port + 1}"
            ) from error


def _clear(store: Store) -> None:
    """End what a command of this run directory that was killed has left on the cluster.

    Raises:
        RecipeError: Serve hosts something else; it has one address for all, and is not ours to end.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    if _get_global_client(raise_if_no_controller_running=False) is None:
        return
    own = {_named(store, name) for name in (*checkpoint_names(), _ROUTER)}
    if others := serve.status().applications.keys() - own:
        raise RecipeError(
            f"the cluster's Ray Serve hosts {', '.join(sorted(others))} already, and has one address for all. "
            "End that first (`serve shutdown`, or the `bezoar serve` that started it), or use another cluster"
        )
    _stop()


def _stop() -> None:
    """End the applications once they have answered what they were asked, and Serve itself.

    `serve.shutdown` would do it with a call that Ray reports to the user as failed; a `delete` that waits does so for a
    minute, less than the replicas are given.
    """
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client, _set_global_client

    client = _get_global_client()
    if client is None:
        return
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    _wait_until(
        lambda: not serve.status().applications
    )  # Serve ends a replica that takes longer than it was given
    ray.get(client._controller.graceful_shutdown.remote(wait=False))
    _wait_until(
        lambda: (
            not any(
                actor["namespace"] == "serve"
                for actor in ray.util.list_named_actors(True)
            )
        )
    )
    _set_global_client(
        None
    )  # as `serve.shutdown` does: whoever serves next in this process starts anew


def _wait_until(over: Callable[[], bool]) -> None:
    """Look until it is so. What is not over by the deadline is left to Ray, which ends it with the session."""
    deadline = time.monotonic() + 2 * DRAIN_SECONDS
    while not over():
        if time.monotonic() > deadline:
            event("the endpoint did not end in time", logging.WARNING)
            return
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
