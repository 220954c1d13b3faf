"""What runs in the replicas: vLLM's own OpenAI app around an engine, or the router in front of several engines."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from bezoar_ray.llm.chat_tokens import guard
from bezoar_ray.recipe import Recipe, Serve
from bezoar_ray.runtime.logs import redirect
from bezoar_ray.runtime.metrics import hold_gpus
from bezoar_ray.serve.arguments import engine_arguments
from bezoar_ray.serve.auth import Gate
from bezoar_ray.serve.router import HttpRequest, answer
from bezoar_ray.serve.router import router as routed
from bezoar_ray.store import Store

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
    from starlette.types import Message

LOG = "serve.log"
DRAIN_SECONDS = 120.0  # for what a replica still answers when it is replaced or stopped
_BUSY = 64  # requests under way at which a replica is given company
_MOST = 4096  # requests that a replica takes: vLLM has a queue of its own
_engines: list[Any] = []  # the replica's one engine, and
_apps: list[Any] = []  # vLLM's app around it


def engine(name: str, recipe: Recipe, root: str, key: str | None) -> "Application":
    """The application of one engine of a run directory: base's, with all joined checkpoints, or a merged one's."""
    from ray import serve

    part = recipe.serve

    @serve.deployment(
        name="engine",
        ray_actor_options={
            "num_cpus": part.num_cpus,
            "num_gpus": part.num_gpus,
            **part.placement,
        },
        max_ongoing_requests=_MOST,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        **scaling(part),
    )
    @serve.ingress(lambda: _engine_app(name, recipe, root, key))
    class Engine:
        async def check_health(self) -> None:
            """Raises where the engine of this replica has died, so that Serve replaces the replica."""
            await check_engines()

        async def answer(self, request: HttpRequest) -> "AsyncIterator[Message]":
            """ASGI messages, for the router."""
            async for message in inner_answer(request):
                yield message

    return Engine.bind()  # type: ignore[attr-defined]  # a deployment, which `serve.ingress` does not say


def router(hosts: dict[str, str], part: Serve, key: str | None) -> "Application":
    """An application that hands requests on to the engines' applications: `hosts` by model."""
    from ray import serve

    @serve.deployment(
        name="router",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_MOST,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )
    @serve.ingress(lambda: _router_app(hosts, part, key))
    class Router:
        pass

    return Router.bind()  # type: ignore[attr-defined]  # as above


def scaling(part: Serve) -> dict[str, Any]:
    """Serve's options for the number of replicas."""
    if (part.max_replicas or 0) <= part.replicas:
        return {"num_replicas": part.replicas}
    limits = {"min_replicas": part.replicas, "max_replicas": part.max_replicas}
    return {"autoscaling_config": limits | {"target_ongoing_requests": _BUSY}}


async def check_engines() -> None:
    """Raises where an engine of this process has died."""
    for found in _engines:
        await found.check_health()


def inner_answer(request: HttpRequest) -> "AsyncIterator[Message]":
    """What vLLM's app in this process says, as ASGI messages."""
    return answer(_apps[0], request)


def _engine_app(name: str, recipe: Recipe, root: str, key: str | None) -> "FastAPI":
    """The replica's ASGI app: its lifespan owns the engine and mounts vLLM's own OpenAI app."""
    from fastapi import FastAPI

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = Store(root)
        _settle(store.log(LOG))
        hold_gpus(store.name, "serve")
        async with _openai_app(engine_arguments(recipe, store)[name]) as inner:
            _apps.append(inner)
            app.mount("/", inner)
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.add_middleware(Gate, key=key, most=recipe.serve.max_request_bytes)
    return app


def _router_app(hosts: dict[str, str], part: Serve, key: str | None) -> "FastAPI":
    from fastapi import FastAPI
    from ray import serve

    def handed_to(name: str) -> "Callable[[HttpRequest], AsyncIterator[Message]]":
        @cache  # at the first request: the application may still be starting
        def handle() -> "DeploymentHandle[Any]":
            return serve.get_app_handle(name).options(stream=True)

        def hand(request: HttpRequest) -> "AsyncIterator[Message]":
            return cast(
                "DeploymentResponseGenerator[Message]", handle().answer.remote(request)
            )

        return hand

    app = FastAPI(openapi_url=None)
    hands = {name: handed_to(name) for name in hosts.values()}
    app.mount("/", routed({model: hands[name] for model, name in hosts.items()}))
    app.add_middleware(Gate, key=key, most=part.max_request_bytes)
    return app


@contextlib.asynccontextmanager
async def _openai_app(arguments: list[str]) -> "AsyncIterator[FastAPI]":
    """vLLM's app around an engine whose figures go to Ray's metrics, by replica."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    found = AsyncLLM.from_engine_args(
        AsyncEngineArgs.from_cli_args(args),
        usage_context=UsageContext.OPENAI_API_SERVER,
        stat_loggers=[RayPrometheusStatLogger],
    )
    guard(found.renderer.tokenizer)
    try:
        tasks = await found.get_supported_tasks()
        inner = build_app(args, tasks, found.model_config)
        await init_app_state(found, inner.state, args, tasks)
        inner.state.server = (
            SimpleNamespace()
        )  # vLLM's error handler asks it to exit; `check_engines` ends the replica
        _engines.append(found)
        yield inner
    finally:
        found.shutdown()


def _settle(log: Path) -> None:
    """Make this process and the engine's core, its child, write to the run's log and end together."""
    from bezoar_ray.llm.engine import set_up_cpu
    from bezoar_ray.runtime.engine_parent import bind_children

    set_up_cpu()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    redirect(log)
    bind_children()
