"""The replicas of Ray Serve: vLLM's OpenAI app with its engine, or a router."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from bezoar_ray.llm.chat_tokens import protect_chat_template
from bezoar_ray.recipe import Recipe, Serve
from bezoar_ray.runtime.logs import redirect
from bezoar_ray.runtime.metrics import hold_gpus
from bezoar_ray.serve.arguments import engine_arguments
from bezoar_ray.serve.auth import RequestGuard
from bezoar_ray.serve.router import HttpRequest, respond, routing_app
from bezoar_ray.store import Store

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
    from starlette.types import Message

LOG = "serve.log"
DRAIN_SECONDS = 120.0
"""How long a replica may take to answer its requests when it is replaced or stopped."""
_TARGET_ONGOING_REQUESTS = 64  # with more of them per replica, Serve adds a replica
_MAX_ONGOING_REQUESTS = 4096  # high, since vLLM has a queue of its own

# A replica is a process with one engine and vLLM's app around it.
_engines: list[Any] = []
_apps: list[Any] = []


def engine_application(
    name: str, recipe: Recipe, root: str, key: str | None
) -> "Application":
    """Build the application of one engine.

    Args:
        name: base for the engine of all joined checkpoints, else a merged checkpoint.
        recipe: the run's recipe.
        root: the run directory.
        key: the key that clients must send, if any.
    """
    from ray import serve

    section = recipe.serve

    @serve.deployment(
        name="engine",
        ray_actor_options={
            "num_cpus": section.num_cpus,
            "num_gpus": section.num_gpus,
            **section.placement,
        },
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        **scaling(section),
    )
    # A function, so that the app and its engine are made in the replica.
    @serve.ingress(lambda: _engine_app(name, recipe, root, key))
    class Engine:
        async def check_health(self) -> None:
            """Raise if this replica's engine is dead, so that Serve replaces it."""
            await check_engines()

        async def respond(self, request: HttpRequest) -> "AsyncIterator[Message]":
            """Yield the ASGI messages of a response, for the router."""
            async for message in respond_locally(request):
                yield message

    # `serve.ingress` returns a deployment, but its type does not say so.
    return Engine.bind()  # type: ignore[attr-defined]


def router_application(
    application_of: dict[str, str], section: Serve, key: str | None
) -> "Application":
    """Build the application that forwards requests to the engines' applications.

    Args:
        application_of: the name of the engine's application, by model.
        section: the recipe's `serve`.
        key: the key that clients must send, if any.
    """
    from ray import serve

    @serve.deployment(
        name="router",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )
    @serve.ingress(lambda: _router_app(application_of, section, key))
    class Router:
        pass

    return Router.bind()  # type: ignore[attr-defined]  # as above


def scaling(section: Serve) -> dict[str, Any]:
    """Return Serve's options for the number of replicas."""
    if (section.max_replicas or 0) <= section.replicas:
        return {"num_replicas": section.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": section.replicas,
            "max_replicas": section.max_replicas,
            "target_ongoing_requests": _TARGET_ONGOING_REQUESTS,
        }
    }


async def check_engines() -> None:
    """Raise if an engine of this process is dead."""
    for engine in _engines:
        await engine.check_health()


def respond_locally(request: HttpRequest) -> "AsyncIterator[Message]":
    """Run vLLM's app in this process on one request."""
    return respond(_apps[0], request)


def _engine_app(name: str, recipe: Recipe, root: str, key: str | None) -> "FastAPI":
    """Build a replica's ASGI app. Its lifespan owns the engine and mounts vLLM's app."""
    from fastapi import FastAPI

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = Store(root)
        _prepare_process(store.log(LOG))
        hold_gpus(store.name, "serve")
        arguments = engine_arguments(recipe, store)[name]
        async with _openai_app(arguments) as openai_app:
            _apps.append(openai_app)
            app.mount("/", openai_app)
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.add_middleware(RequestGuard, key=key, max_bytes=recipe.serve.max_request_bytes)
    return app


def _router_app(
    application_of: dict[str, str], section: Serve, key: str | None
) -> "FastAPI":
    """Build the router's ASGI app."""
    from fastapi import FastAPI

    engines = {name: _remote_engine(name) for name in application_of.values()}
    by_model = {model: engines[name] for model, name in application_of.items()}
    app = FastAPI(openapi_url=None)
    app.mount("/", routing_app(by_model))
    app.add_middleware(RequestGuard, key=key, max_bytes=section.max_request_bytes)
    return app


def _remote_engine(
    application: str,
) -> "Callable[[HttpRequest], AsyncIterator[Message]]":
    """Return a function that sends a request to another application's engine."""
    from ray import serve

    @cache  # opened at the first request: before that the engine may still be starting
    def handle() -> "DeploymentHandle[Any]":
        return serve.get_app_handle(application).options(stream=True)

    def send_request(request: HttpRequest) -> "AsyncIterator[Message]":
        response = handle().respond.remote(request)
        return cast("DeploymentResponseGenerator[Message]", response)

    return send_request


@contextlib.asynccontextmanager
async def _openai_app(arguments: list[str]) -> "AsyncIterator[FastAPI]":
    """Start an engine and yield vLLM's OpenAI app around it.

    The engine's statistics go to Ray's metrics, labeled by replica.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs.from_cli_args(args),
        usage_context=UsageContext.OPENAI_API_SERVER,
        stat_loggers=[RayPrometheusStatLogger],
    )
    protect_chat_template(engine.renderer.tokenizer)
    try:
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
        # After a fatal error, vLLM's handler asks the server in `state` to exit. This
        # one does nothing: `check_engines` has Serve replace the replica.
        app.state.server = SimpleNamespace()
        _engines.append(engine)
        yield app
    finally:
        engine.shutdown()


def _prepare_process(log: Path) -> None:
    """Set up this replica's process before its engine starts.

    The process and its child, the engine's core, write to the run's log and end
    together.
    """
    from bezoar_ray.llm.engine import set_cpu_kv_cache_size
    from bezoar_ray.runtime.engine_parent import bind_children

    set_cpu_kv_cache_size()
    # By default vLLM reports statistics of its use to its developers.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Before the engine starts: its core process inherits this output.
    redirect(log)
    bind_children()
