"""`bezoar serve` as a process: checkpoints are replaced, a dead engine is, and what is being answered is answered."""

import concurrent.futures
import contextlib
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
import yaml

from bezoar_ray.serve.app import _free_port
from bezoar_ray.store import Store
from tests.end_to_end import Module
from tests.family import family_recipe, write_family
from tests.serve.test_app import greedy, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Server(Module):
    """The command, and the run directory that it serves."""

    def __init__(self, store: Store, *settings: str):
        port = _free_port()
        self.store, self.base_url = store, f"http://127.0.0.1:{port}/v1"
        recipe = family_recipe(f"serve.port={port}", *settings)
        store.replace("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json")))
        super().__init__("bezoar_ray.cli", "serve", str(store.root))
        self.read_until(f"ready: base, sft, dpo at {self.base_url}")
        self.metrics = (
            self.read_until("metrics for Prometheus").rsplit(" ", 1)[1].strip()
        )

    def engines(self) -> list[psutil.Process]:
        """vLLM's core processes, one of each replica."""
        return [
            process for process in self.processes() if "EngineCore" in _title(process)
        ]


@pytest.fixture(scope="module")
def server(tiny_world, tmp_path_factory) -> Iterator[Server]:
    """One for all tests, of which the last ends it."""
    store = Store(tmp_path_factory.mktemp("served"))
    write_family(store, tiny_world)
    found = Server(store)
    yield found
    if found.runs():
        found.interrupt()
        found.wait(200)


def test_a_retrained_checkpoint_takes_the_old_ones_place_and_no_request_is_dropped(
    server,
):
    """Asked without a pause while the weights of sft change."""
    store, base_url = server.store, server.base_url
    before, asked = greedy(base_url, "sft"), AskedOn(base_url)
    store.remove("checkpoints/sft")  # as training begins
    time.sleep(6)  # it looks every 5 s
    shutil.copytree(
        store.path("checkpoints/dpo/joined"), store.path("checkpoints/sft/joined")
    )
    store.replace_json(
        "checkpoints/sft/lineage.json", {"name": "sft", "fingerprint": "trained anew"}
    )
    server.read_until("a checkpoint was retrained")
    server.read_until("replaced")
    time.sleep(1)
    failed, answers = asked.end()
    assert failed == []
    assert len(answers) == 2  # of the old weights, then of the new ones
    after = greedy(base_url, "sft")
    assert after == greedy(base_url, "dpo") != before


def test_an_engine_that_has_died_is_replaced(server):
    """Serve's health checks find it, and start another replica."""
    before = greedy(server.base_url, "dpo")
    (core,) = server.engines()
    core.kill()
    began = time.monotonic()
    while (
        found := _answered(server.base_url)
    ) is None and time.monotonic() - began < 400:
        time.sleep(1)
    print(
        f"\nanswers again {time.monotonic() - began:.0f} s after its engine was killed"
    )
    assert found == before


def test_an_answer_that_is_under_way_ends_before_the_endpoint_does(server):
    """Ctrl-C in the middle of a stream."""
    asked = {
        "model": "dpo",
        "prompt": [5, 6, 7],
        "max_tokens": 300,
        "ignore_eos": True,
        "temperature": 0,
    }
    chunks = streamed(server.base_url, stream=True, **asked)
    first = next(chunks)
    server.interrupt()
    rest = list(chunks)
    assert (
        first
        and rest[-1] == "[DONE]"
        and json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
    )
    assert server.wait(200)[0] == 0


def streamed(base_url: str, **body) -> Iterator[str]:
    """The data of the events of a streamed completion, as they come."""
    request = urllib.request.Request(
        f"{base_url}/completions",
        json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        yield from (
            line.decode().removeprefix("data: ").strip()
            for line in answer
            if line.strip()
        )


def _answered(base_url: str) -> list[str] | None:
    with contextlib.suppress(OSError):
        return greedy(base_url, "dpo")
    return None


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class AskedOn:
    """Threads that ask the endpoint for the same greedy answer again and again."""

    def __init__(self, base_url: str, threads: int = 4, tokens: int = 8):
        self._url, self._tokens, self._over = base_url, tokens, threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._jobs = [self._pool.submit(self._ask) for _ in range(threads)]

    def end(self) -> tuple[list[str], set[str]]:
        """What failed, and the different answers."""
        self._over.set()
        found = [job.result() for job in self._jobs]
        return [fault for faults, _ in found for fault in faults], set().union(
            *(answers for _, answers in found)
        )

    def _ask(self) -> tuple[list[str], set[str]]:
        failed, answers = [], set()
        asked = {
            "model": "sft",
            "prompt": [[5, 6, 7]],
            "max_tokens": self._tokens,
            "temperature": 0,
        }
        while not self._over.is_set():
            try:
                found = post(self._url, "/completions", **asked)
                answers.add(found["choices"][0]["text"])
            except OSError as error:
                failed.append(str(error))
        return failed, answers
