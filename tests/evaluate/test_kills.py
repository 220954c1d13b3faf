"""An evaluation that is killed at any moment ends complete, and asks for nothing twice but what was in flight. By hand:
`make soak`; with real vLLM, test_end_to_end.py kills it once."""

import random
import shutil
import time
from pathlib import Path

import pytest

from bezoar_ray.store import Store
from tests.end_to_end import Module, harness_scores, replies
from tests.endpoint import serving
from tests.engine import hosting
from tests.family import write_family
from tests.scripted import says

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
NAMES = ["base", "sft", "dpo"]
KINDS = {"tiny_choice": "scored", "tiny_answer": "generated"}


@pytest.fixture(scope="module")
def run_directory(tiny_world, tmp_path_factory) -> Store:
    """Three checkpoints, not yet measured."""
    store = Store(tmp_path_factory.mktemp("evaluate") / "run")
    write_family(store, tiny_world)
    return store


@pytest.fixture(scope="module")
def undisturbed(run_directory, tmp_path_factory):
    """What comes out where nothing happens, how much is asked for, and which chats."""
    folder = copied(run_directory, tmp_path_factory.mktemp("undisturbed"))
    with hosting(NAMES) as engine, serving(says) as judge:
        code, output = Module(
            "tests.evaluate.measure", str(folder), engine.url, judge.url
        ).wait()
    assert code == 0, output
    return Store(folder).read_json("outcome.json"), engine, len(judge.requests)


def copied(store: Store, folder: Path) -> Path:
    """A run directory of its own, with the same checkpoints."""
    shutil.copytree(store.path("checkpoints"), folder / "checkpoints")
    return folder


def killed_and_resumed(
    seed: int, run_directory: Store, undisturbed, folder: Path
) -> str:
    """A row of the table of kills."""
    expected, calm, judged = undisturbed
    folder, at = (
        copied(run_directory, folder),
        random.Random(seed).randrange(1, calm.asked + judged),
    )
    with hosting(NAMES, slowest=0.1) as engine, serving(says) as judge:
        running = Module("tests.evaluate.measure", str(folder), engine.url, judge.url)
        running.wait_until(lambda: engine.asked + len(judge.requests) >= at)
        running.kill_everything()
        time.sleep(0.5)  # for answers on their way
        kept, on_shelf, asked = (
            dict(replies(folder)),
            harness_scores(folder),
            engine.scored.copy(),
        )
        under_way = engine.chats.total() + len(judge.requests) - len(kept)
        code, output = Module(
            "tests.evaluate.measure", str(folder), engine.url, judge.url
        ).wait()
    assert code == 0, output
    assert Store(folder).read_json("outcome.json") == expected
    assert kept.items() <= dict(replies(folder)).items()
    assert on_shelf.items() <= harness_scores(folder).items()
    repeated = (engine.chats - calm.chats).total() + len(judge.requests) - judged
    assert 0 <= repeated <= under_way
    for name, task in on_shelf:
        assert engine.scored[name, KINDS[task]] == asked[name, KINDS[task]]
    again = [key for key, count in engine.scored.items() if count > calm.scored[key]]
    assert len(again) <= 2  # tasks that were under way
    return f"| {seed} | {at} | {len(kept)} | {repeated} | {len(on_shelf)} of {len(NAMES) * len(KINDS)} | {len(again)} |"


@pytest.mark.parametrize("seed", [*range(7), 9, 10])
def test_a_killed_evaluation_ends_as_if_nothing_had_happened(
    seed, run_directory, undisturbed, tmp_path
):
    print("\n" + killed_and_resumed(seed, run_directory, undisturbed, tmp_path))
