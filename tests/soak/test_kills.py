"""Runs of generate and filter that are killed at any moment, or on a budget. By hand: `make soak`."""

import random
import time
from collections import Counter
from pathlib import Path

import orjson
import psutil
import pytest

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.store import Store
from tests.end_to_end import Command, replies, summary
from tests.endpoint import Server, serving
from tests.scripted import says

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
SCHEMES = ("lamini", "evol_instruct", "orca")
ROWS = [
    "generate.lamini.calls=12",
    "generate.evol_instruct.seeds=12",
    "generate.orca.rows=40",
]
SLOTS = 16
TIGHT = {
    "max_tokens": 8,
    "timeout": 10,
}  # what died actors had reserved is given up for spent after the time-out
PRICES = {"prices": {"input": 1, "output": 1}}


def command(run_dir: Path, server: Server, *sets: str, **more) -> Command:
    """generate and filter with a scripted teacher and judge."""
    model = orjson.dumps(
        {"model": "m", "base_url": server.url, "max_in_flight": SLOTS, **PRICES, **more}
    ).decode()
    models = [f"teacher={model}", f"judges=[{model}]"]
    return Command(run_dir, "--stages", "generate,filter", sets=[*ROWS, *models, *sets])


def rows(run_dir: Path) -> dict:
    """All rows, by where they ended."""
    store, ends = Store(run_dir), ("generated", "accepted", "rejected", "failed")
    return {
        (scheme, end): read_samples(store, scheme, end)
        for scheme in SCHEMES
        for end in ends
    }


def ids(run_dir: Path) -> list[str]:
    """Of all generated rows."""
    return [
        sample.id
        for (_, end), samples in rows(run_dir).items()
        if end == "generated"
        for sample in samples
    ]


def asked(server: Server) -> Counter:
    """How often each call was made."""
    return Counter(orjson.dumps(messages) for messages in server.requests)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows of a run that nothing happens to, and its calls."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    with serving(says) as server:
        code, output = command(run_dir, server).wait()
    assert code == 0, output
    return rows(run_dir), asked(server)


@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_a_random_call_loses_and_repeats_nothing(
    seed, undisturbed, tmp_path
):
    expected, calls = undisturbed
    at = random.Random(seed).randrange(1, calls.total())
    with serving(says) as server:
        killed = command(tmp_path, server)
        killed.wait_until(lambda: len(server.requests) >= at)
        killed.kill_everything()
        time.sleep(0.5)  # for answers on their way
        sent, kept = len(server.requests), replies(tmp_path)
        code, output = command(tmp_path, server).wait()
    assert code == 0, output
    assert rows(tmp_path) == expected
    assert dict(kept).items() <= dict(replies(tmp_path)).items()
    repeated = asked(server) - calls
    in_flight = sent - len(kept)
    print(f"\n| {seed} | {at} | {in_flight} | {repeated.total()} | 0 | 0 |")
    assert repeated.total() <= in_flight <= 2 * SLOTS


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_holds_whatever_the_prices_and_latencies_and_while_actors_are_killed(
    seed, undisturbed, tmp_path
):
    expected, calls = undisturbed
    rng = random.Random(seed)
    prices = {
        "input": round(rng.uniform(0, 50), 2),
        "output": round(rng.uniform(1, 500), 2),
    }
    cost = (
        7 * prices["input"] + 2 * prices["output"]
    ) / 1e6  # of a call, as the server counts its tokens
    budget = round(cost * calls.total() * rng.uniform(0.2, 0.9), 6)
    slowest = rng.uniform(0, 0.2)

    def answer(messages):
        time.sleep(random.uniform(0, slowest))
        return says(messages)

    with serving(answer) as server:
        tight = command(
            tmp_path, server, f"budget_usd={budget}", prices=prices, **TIGHT
        )
        deaths = 0
        while tight.runs():
            at = len(server.requests) + rng.randrange(
                10, 60
            )  # calls, not seconds: an actor may take long to start
            while tight.runs() and len(server.requests) < at:
                time.sleep(0.05)
            deaths += kill_an_actor(tight, rng)
        code, output = tight.wait()
        at_budget = len(server.requests)
        assert code == 4, output
        assert at_budget * cost <= budget
        spent = summary(tmp_path)["calls"]
        assert (
            at_budget * cost
            <= spent["teacher"]["usd"] + spent["judge"]["usd"]
            <= budget
        )
        kept = replies(tmp_path)
        code, output = command(
            tmp_path, server, "budget_usd=1000", prices=prices, **TIGHT
        ).wait()
    assert code == 0, output
    assert rows(tmp_path) == expected
    assert dict(kept).items() <= dict(replies(tmp_path)).items()
    share = (spent["teacher"]["usd"] + spent["judge"]["usd"]) / budget
    print(
        f"\n| {seed} | {prices['input']} / {prices['output']} | {budget} | {deaths} | {share:.3f} |"
    )


def kill_an_actor(running: Command, rng: random.Random) -> int:
    """SIGKILL to one of the actors that talk to a model, if there is one."""
    actors = [
        process
        for process in running.processes()
        if "MapWorker" in process.name() + " ".join(cmdline(process))
    ]
    for process in rng.sample(actors, min(1, len(actors))):
        process.kill()
        return 1
    return 0


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_real_engine_killed_twice_and_a_run_killed_at_a_random_call(
    tiny_world, tmp_path
):
    def real(run_dir: Path) -> Command:
        return Command(run_dir, "--stages", "generate,filter", sets=ROWS)

    code, output = real(tmp_path / "undisturbed").wait()
    assert code == 0, output
    run_dir = tmp_path / "run"
    running = real(run_dir)
    for count in (40, 120):
        running.wait_until(lambda count=count: len(replies(run_dir)) > count)
        cores = [
            process
            for process in running.processes()
            if "EngineCore" in " ".join(cmdline(process))
        ]
        assert len(cores) == 1
        cores[0].kill()
        running.wait_until(lambda cores=cores: len(replies(run_dir)) > len(cores) + 10)
    running.wait_until(lambda: len(replies(run_dir)) > 180)
    running.kill_everything()
    kept = replies(run_dir)
    code, output = real(run_dir).wait()
    assert code == 0, output
    assert dict(kept).items() <= dict(replies(run_dir)).items()
    assert ids(run_dir) == ids(tmp_path / "undisturbed")
    twice = Counter(key for key, _ in replies(run_dir))
    print(f"\nreal vLLM: {sum(times - 1 for times in twice.values())} answers twice")
    assert sum(times - 1 for times in twice.values()) == 0
