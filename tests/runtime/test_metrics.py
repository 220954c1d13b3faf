"""Figures for Prometheus."""

import asyncio
import time
import urllib.request

import orjson
import pytest

from bezoar_ray.llm.chat import Reply
from bezoar_ray.llm.ledger import Ledger
from bezoar_ray.runtime.metrics import METRICS, MetricSet, hold_gpus, set_stage


def exported(*names: str) -> dict[str, list[str]]:
    """The lines that Ray exports of some metrics, as soon as there are some of each."""
    import ray

    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    for _ in range(60):
        lines = urllib.request.urlopen(address, timeout=10).read().decode().splitlines()
        found = {
            name: [line for line in lines if line.startswith(f"{name}{{")]
            for name in names
        }
        if all(found.values()):
            return found
        time.sleep(0.5)
    raise AssertionError(f"not exported: {[name for name in names if not found[name]]}")


def value(lines: list[str], *tags: str) -> float:
    (line,) = [line for line in lines if all(tag in line for tag in tags)]
    return float(line.rsplit(" ", 1)[1])


@pytest.mark.slow
def test_calls_tokens_dollars_and_stages_are_exported(
    ray_session, tmp_path, monkeypatch
):
    async def go() -> None:
        ledger = Ledger(tmp_path / "metered", "judge", "one")
        ledger.metrics.watch("bezoar_calls_waiting", lambda: 7, model="m")
        await asyncio.gather(
            *(
                ledger.record_usage(f"{n:02x}", "m", Reply("x", "stop", 10, 4), 0.5)
                for n in range(6)
            )
        )
        ledger.fail("aa", "m", "500", 0.25)
        assert ledger.find("01")
        await ledger.close()

    asyncio.run(go())
    set_stage("metered", "filter", 6, 10)
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [0, 3])  # this machine may have none
    hold_gpus("metered", "sft")
    found = exported(
        "ray_bezoar_calls_total",
        "ray_bezoar_tokens_total",
        "ray_bezoar_dollars_total",
        "ray_bezoar_calls_waiting",
        "ray_bezoar_stage_done",
        "ray_bezoar_gpu",
    )
    mine = 'run="metered"'
    calls = found["ray_bezoar_calls_total"]
    assert [
        value(calls, mine, f'outcome="{how}"')
        for how in ("answered", "failed", "found")
    ] == [6, 1, 1]
    assert (
        value(
            found["ray_bezoar_tokens_total"], mine, 'stage="filter"', 'direction="in"'
        )
        == 60
    )
    assert value(found["ray_bezoar_dollars_total"], mine, 'model="m"') == pytest.approx(
        3.25
    )
    assert value(found["ray_bezoar_calls_waiting"], mine) == 7
    assert value(found["ray_bezoar_stage_done"], mine, 'stage="filter"') == 6
    on = [
        value(found["ray_bezoar_gpu"], mine, 'stage="sft"', f'GpuIndex="{index}"')
        for index in (0, 3)
    ]
    assert on == [1, 1] and len(found["ray_bezoar_gpu"]) == 2


def test_without_ray_figures_go_nowhere(monkeypatch):
    monkeypatch.setattr("bezoar_ray.runtime.metrics._ray_runs", lambda: False)
    figures = MetricSet(run="r", role="judge")
    figures.watch("bezoar_calls_waiting", lambda: 1 / 0, model="m")
    figures.add("bezoar_calls", model="m", outcome="answered")
    figures.tell()


def test_the_dashboard_asks_for_figures_that_there_are():
    from pathlib import Path

    board = orjson.loads(
        (Path(__file__).parents[2] / "cluster/grafana.json").read_bytes()
    )
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    names = {
        name + ("_total" if kind == "Counter" else "")
        for name, (kind, *_) in METRICS.items()
    }
    used = {
        name
        for name in names
        if any(f"ray_{name}" in expression for expression in asked)
    }
    assert used == names
    assert any("gpus_utilization" in expression for expression in asked)
