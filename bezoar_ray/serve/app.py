"""The family of checkpoints on Ray Serve: one vLLM engine, the untouched base with one joined LoRA per checkpoint.

Joined LoRAs give the same greedy text as the merged models, so a single engine start serves base, sft, hh-sft and dpo.
Checkpoints that are served merged have an engine each, behind a router.
"""

import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.logs import redirect
from bezoar_ray.recipe import CHECKPOINTS, Recipe
from bezoar_ray.serve.arguments import engine_arguments, modes
from bezoar_ray.serve.router import Request, answer, router
from bezoar_ray.store import Store

LOG = "logs/serve.log"
_ROUTER = "router"
_engines: list[Any] = []  # the replica's one engine, and
_apps: list[Any] = []  # vLLM's app around it
_LOCAL = ("127.0.0.1", "localhost", "::1")


@contextlib.contextmanager
def running(recipe: Recipe, store: Store, port: int | None = None) -> Iterator[str]:
    """Serve every checkpoint of the run directory on the initialised Ray; yields `http://127.0.0.1:PORT/v1`.

    Raises:
        BezoarError: the engine did not start; the message ends with the last lines of its log.
    """
    with _deployed(recipe, store, "127.0.0.1", port or _free_port(), key=None) as base_url:
        yield base_url


def serve_forever(recipe: Recipe, store: Store) -> None:
    """`bezoar serve`: the family at the recipe's `serve.host` and `serve.port`, until the process is stopped.

    Raises:
        RecipeError: an address that others can reach without a key in BEZOAR_API_KEY.
    """
    key = _key_for(recipe.serve.host)
    with _deployed(recipe, store, recipe.serve.host, recipe.serve.port, key) as base_url:
        print(_greeting(base_url, list(modes(recipe, store)), guarded=key is not None), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


def _key_for(host: str) -> str | None:
    key = os.environ.get("BEZOAR_API_KEY") or None
    if host not in _LOCAL and not key:
        raise RecipeError(
            f"serve.host: {host!r} can be reached by others. Set the environment variable BEZOAR_API_KEY to the key "
            "that clients must send, or use 127.0.0.1."
        )
    return key


def _greeting(base_url: str, names: list[str], guarded: bool) -> str:
    header = ' -H "Authorization: Bearer $BEZOAR_API_KEY"' if guarded else ""
    body = f'{{"model": "{names[-1]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"ready: {', '.join(names)} at {base_url}\n"
        f"try: curl {base_url}/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'"
    )


@contextlib.contextmanager
def _deployed(recipe: Recipe, store: Store, host: str, port: int, key: str | None) -> Iterator[str]:
    import logging

    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    log = store.path(LOG)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=quiet)
    try:
        engines, served = engine_arguments(recipe, store), modes(recipe, store)
        targets = [
            serve.RunTarget(
                _application(recipe, arguments, str(log), key), name, "/" if len(engines) == 1 else None, quiet
            )
            for name, arguments in engines.items()
        ]
        if len(engines) > 1:
            hosts = {name: name if name in engines else CHECKPOINTS[0] for name in served}
            targets.append(serve.RunTarget(_router(hosts, key), _ROUTER, "/", quiet))
        try:
            serve.run_many(targets)
        except RuntimeError as error:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise BezoarError(f"the endpoint did not start: {error}\nLast lines of {log}:\n{tail}") from error
        reachable = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        yield f"http://{reachable}:{port}/v1"
    finally:
        _stop()


def _stop() -> None:
    """End the app and Serve itself; `serve.shutdown` would do it with a call that Ray reports to the user as failed."""
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    controller = _get_global_client()._controller
    for name in serve.status().applications:
        serve.delete(name)
    ray.get(controller.graceful_shutdown.remote(wait=False))
    while any(actor["namespace"] == "serve" for actor in ray.util.list_named_actors(all_namespaces=True)):
        time.sleep(0.2)


def _application(recipe: Recipe, arguments: list[str], log: str, key: str | None) -> Any:
    from ray import serve

    part = recipe.serve

    @serve.deployment(
        name="engine",
        ray_actor_options={"num_cpus": part.num_cpus, "num_gpus": part.num_gpus},
        max_ongoing_requests=4096,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=10,
    )
    @serve.ingress(lambda: _engine(arguments, log, key))
    class Engine:
        async def check_health(self) -> None:
            await engine_health()

        async def answer(self, request: Request) -> AsyncIterator[dict[str, Any]]:
            """ASGI messages, for the router."""
            async for message in engine_answer(request):
                yield message

    return Engine.bind()


def _router(hosts: dict[str, str], key: str | None) -> Any:
    """An application that hands requests on to the engines' applications: `hosts` by model."""
    from fastapi import FastAPI
    from ray import serve

    def handed_to(engine: str) -> Any:
        def hand(request: Request) -> AsyncIterator[dict[str, Any]]:
            return serve.get_app_handle(engine).options(stream=True).answer.remote(request)

        return hand

    def ingress() -> Any:
        app = FastAPI(openapi_url=None)
        hands = {engine: handed_to(engine) for engine in hosts.values()}
        app.mount("/", router({name: hands[engine] for name, engine in hosts.items()}))
        if key:
            _guard(app, key)
        return app

    @serve.deployment(name=_ROUTER, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=4096)
    @serve.ingress(ingress)
    class Router:
        pass

    return Router.bind()


def _engine(arguments: list[str], log: str, key: str | None) -> Any:
    """The replica's ASGI app: its lifespan owns the engine and mounts vLLM's own OpenAI app."""
    from fastapi import FastAPI

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _settle(log)
        async with _openai_app(arguments) as inner:
            _apps.append(inner)
            app.mount("/", inner)
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    if key:
        _guard(app, key)
    return app


async def engine_health() -> None:
    """Raises where the engine of this replica has died, so that Serve replaces the replica."""
    for engine in _engines:
        await engine.check_health()


def engine_answer(request: Request) -> AsyncIterator[dict[str, Any]]:
    """What vLLM's app in this replica says, as ASGI messages."""
    return answer(_apps[0], request)


@contextlib.asynccontextmanager
async def _openai_app(arguments: list[str]) -> AsyncIterator[Any]:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    async with build_async_engine_client(args) as engine:
        tasks = await engine.get_supported_tasks()
        inner = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, inner.state, args, tasks)
        inner.state.server = SimpleNamespace()  # vLLM's error handler asks it to exit; here `engine_health` ends it
        _engines.append(engine)
        yield inner


def _settle(log: str) -> None:
    """Make this process and the engine's core, its child, write to the run's log and end together."""
    from bezoar_ray.llm.engine import set_up_cpu
    from bezoar_ray.llm.fate import bind_children

    set_up_cpu()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    redirect(log)
    bind_children()


def _guard(app: Any, key: str) -> None:
    """Ask for the key on every path: vLLM's own `--api-key` leaves paths outside /v1 open."""
    import secrets

    from fastapi.responses import JSONResponse

    @app.middleware("http")
    async def check(request: Any, call_next: Any) -> Any:
        given = request.headers.get("authorization", "")
        if secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
            return await call_next(request)
        return JSONResponse({"error": {"message": "wrong or missing API key", "code": 401}}, status_code=401)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
