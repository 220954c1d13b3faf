"""Replicas come as requests do, and go after them, each on a GPU of its own (Ray's, which are only numbers)."""

import re
import time
import urllib.request
from collections.abc import Callable

import pytest

from bezoar_ray.store import Store
from tests.family import write_family
from tests.serve.test_command import AskedOn, Server

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(2400)]


def test_a_second_replica_comes_with_many_requests_and_goes_after_them(
    tiny_world, tmp_path
):
    """Serve waits half a minute until it adds a replica, and ten minutes until it takes one away."""
    store = Store(tmp_path)
    write_family(store, tiny_world)
    server = Server(store, "serve.max_replicas=2", "serve.num_gpus=1")
    try:
        asked = AskedOn(server.base_url, threads=160, tokens=100)
        came = seconds_until(lambda: len(server.engines()) == 2)
        answered = seconds_until(lambda: len(replicas_that_wrote(server.metrics)) == 2)
        failed, answers = asked.end()
        went = seconds_until(lambda: len(server.engines()) == 1)
        print(
            f"\nit came after {came:.0f} s, wrote {answered:.0f} s later, and went {went:.0f} s after the last request"
        )
        assert failed == [] and len(answers) == 1
    finally:
        server.interrupt()
        server.wait(200)


def replicas_that_wrote(metrics: str) -> set[str]:
    text = urllib.request.urlopen(metrics, timeout=10).read().decode()
    return set(
        re.findall(
            r'^ray_vllm_generation_tokens_total\{.*ReplicaId="([^"]+)".*\} [1-9]',
            text,
            re.MULTILINE,
        )
    )


def seconds_until(reached: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < 900
        time.sleep(0.5)
    return time.monotonic() - began
