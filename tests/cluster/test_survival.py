"""Three real nodes: a submitted run outlives the loss of any of them, of its driver, and of the whole cluster."""

import contextlib
import hashlib
import time

import orjson
import psutil
import pytest

from bezoar_ray import layout
from bezoar_ray.schemes import SCHEMES
from bezoar_ray.stages import STAGES
from bezoar_ray.store import Store
from bezoar_ray.train.reporting import STATE, TrainState
from tests.cluster.jobs import WORK, answered, attached, host, rows, stopped, submitted
from tests.cluster.nodes import cluster
from tests.end_to_end import SMALL, Command, begun, in_stage
from tests.endpoint import serving
from tests.s3 import environment, failing, new_bucket, s3
from tests.scripted import says

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
TRAINED = [*SMALL, "sft.epochs=3", "align.epochs=3"]
BY_REWARD = [
    *SMALL,
    "seeds.helpsteer=[{source: tiny}]",
    "rm={limit: 320, batch: 32, max_length: 512, learning_rate: 1e-3}",
    "align.method=ppo",
    "align.epochs=15",
    "align.ppo={reset: 0.5, max_tokens: 24, passes: 2}",
]
LONG = [
    *SMALL,
    "generate.orca.rows=400",
    "teacher.max_in_flight=4",
]  # there is time to do something to it


def lose_the_node_at_work(nodes, command, run_dir: str, stage: str) -> int:
    """Wait until a stage is well under way, take the node away that does its work, and put another in its place.
    Returns the step after which a training goes on."""
    roles = {"generate": "teacher", "filter": "judge", "evaluate": "candidate"}
    if stage in roles:
        command.wait_until(
            lambda: (
                in_stage(run_dir, stage) and len(answered(run_dir, roles[stage])) > 5
            )
        )
    else:
        command.wait_until(
            lambda: in_stage(run_dir, stage) and _noted(Store(run_dir), stage)
        )
    noted = _noted(Store(run_dir), stage)
    lost = host(nodes, WORK[stage])
    assert lost is not None and in_stage(run_dir, stage)
    nodes.lose(lost)
    nodes.workers.remove(lost)
    nodes.workers.append(nodes.add_worker())
    return noted


def ids_of_an_undisturbed_run(
    tmp_path, sets: list[str] = SMALL
) -> dict[str, list[str]]:
    """Row ids do not depend on what a teacher says: a scripted one gives them in seconds."""
    with serving(says) as server:
        sets = [*sets, f'teacher={{"model": "scripted", "base_url": "{server.url}"}}']
        code, output = Command(
            tmp_path / "calm", "--stages", "generate", sets=sets
        ).wait()
    assert code == 0, output
    return {scheme: rows(str(tmp_path / "calm"), scheme) for scheme in SCHEMES}


@pytest.mark.soak
def test_a_run_outlives_a_node_lost_in_every_stage(tiny_world, tmp_path):
    run_dir = str(tmp_path / "run")
    with cluster(workers=2) as nodes:
        command = submitted(nodes, run_dir, sets=TRAINED)
        noted = {
            stage: lose_the_node_at_work(nodes, command, run_dir, stage)
            for stage in WORK
        }
        code, output = command.wait()
    assert code == 0, output
    found = Store(run_dir).read_json("summary.json")
    assert {stage["status"] for stage in found["stages"].values()} == {"done"}
    assert {
        scheme: rows(run_dir, scheme) for scheme in SCHEMES
    } == ids_of_an_undisturbed_run(tmp_path)
    assert set(answered(run_dir).values()) == {
        1
    }  # what was answered was not asked again
    for stage in ("sft", "align"):
        _went_on(run_dir, stage, noted[stage])


@pytest.mark.soak
def test_ppo_goes_on_after_the_node_that_trains_was_lost(tiny_world, tmp_path):
    run_dir = str(tmp_path / "run")
    only = ("--stages", "generate,filter,sft,hh-sft,rm,align")
    with cluster(workers=2) as nodes:
        command = submitted(nodes, run_dir, *only, sets=BY_REWARD)
        noted = lose_the_node_at_work(nodes, command, run_dir, "align")
        code, output = command.wait()
    assert code == 0, output
    _went_on(run_dir, "align", noted)
    policy = Store(run_dir).read_json("summary.json")["train"]["ppo"]
    steps = [point["step"] for point in policy["by_step"]]
    assert steps == list(range(1, policy["steps"] + 1)) and len(steps) > 20


@pytest.mark.soak
def test_the_same_command_ends_a_run_whose_driver_and_then_whose_whole_cluster_was_lost(
    tiny_world, tmp_path
):
    run_dir = str(tmp_path / "run")
    only = ("--stages", "generate,filter")
    with cluster(workers=2) as nodes:
        command = submitted(nodes, run_dir, *only, sets=LONG)
        command.wait_until(lambda: len(answered(run_dir, "teacher")) > 20)
        command.interrupt()  # ends the following alone; others take it up
        command.wait()
        command, second = (
            attached(nodes, run_dir),
            submitted(nodes, run_dir, *only, sets=LONG),
        )
        second.read_until("already runs for this directory")
        kill_the_driver(nodes, run_dir)
        assert second.wait()[0] == 3
        assert command.wait()[0] == 3
        kept = answered(run_dir)

        command = submitted(nodes, run_dir, *only, sets=LONG)
        command.wait_until(lambda: len(answered(run_dir, "teacher")) > len(kept) + 20)
        for node in (nodes.head, *nodes.workers):
            nodes.lose(node)
        assert command.wait()[0] != 0
        kept_later = answered(run_dir)
        assert kept.items() <= kept_later.items()

        nodes.head = nodes.start_head()
        nodes.workers = [nodes.add_worker() for _ in range(2)]
        code, output = submitted(nodes, run_dir, *only, sets=LONG).wait()
    assert code == 0, output
    assert {
        scheme: rows(run_dir, scheme) for scheme in SCHEMES
    } == ids_of_an_undisturbed_run(tmp_path, LONG)
    assert set(answered(run_dir).values()) == {1}


@pytest.mark.soak
def test_training_goes_on_after_its_driver_and_then_the_head_alone_was_lost(
    tiny_world, tmp_path
):
    run_dir, store = str(tmp_path / "run"), Store(tmp_path / "run")
    only, sets = (
        ("--stages", "generate,filter,sft"),
        [*SMALL, "sft.epochs=20", "sft.checkpoint_every=5"],
    )
    with cluster(workers=2) as nodes:
        command = submitted(nodes, run_dir, *only, sets=sets)
        command.wait_until(
            lambda: in_stage(run_dir, "sft") and _noted(store, "sft") >= 5
        )
        first = _noted(store, "sft")
        kill_the_driver(nodes, run_dir)
        assert command.wait()[0] == 3

        command = submitted(nodes, run_dir, *only, sets=sets)
        command.wait_until(lambda: _noted(store, "sft") >= first + 10)
        second = _noted(store, "sft")
        nodes.lose(nodes.head)
        assert command.wait()[0] != 0
        for worker in nodes.workers:
            worker.wait(
                timeout=180
            )  # without a head it ends by itself, and with it what it worked on

        nodes.head = nodes.start_head()
        nodes.workers = [nodes.add_worker() for _ in range(2)]
        code, output = submitted(nodes, run_dir, *only, sets=sets).wait()
    assert code == 0, output
    _went_on(run_dir, "sft", first, second)
    assert set(answered(run_dir).values()) == {1}


@pytest.mark.soak
def test_a_job_that_is_stopped_leaves_a_checkpoint_and_goes_on_from_it(
    tiny_world, tmp_path
):
    run_dir, store = str(tmp_path / "run"), Store(tmp_path / "run")
    only = ("--stages", "generate,filter,sft")
    sets = [*SMALL, "sft.epochs=20", "sft.checkpoint_every=1000"]
    with cluster(workers=2) as nodes:
        command = submitted(nodes, run_dir, *only, sets=sets)
        command.wait_until(
            lambda: (
                (store.read_json("train/sft/progress.json") or {"step": 0})["step"] > 5
            )
        )
        before, began = store.read_json("train/sft/progress.json"), time.monotonic()
        stopped(
            nodes, f"bezoar-tiny-{hashlib.sha256(run_dir.encode()).hexdigest()[:8]}-1"
        ).wait()
        assert command.wait()[0] == 130 and time.monotonic() - began < 35
        assert (
            store.read_json("summary.json")["stages"]["sft"]["status"] == "interrupted"
        )
        assert _saved(store, "sft") >= before["step"]
        code, output = submitted(nodes, run_dir, *only, sets=sets).wait()
    assert code == 0, output
    _went_on(run_dir, "sft", before["step"])


@pytest.mark.soak
def test_a_node_that_is_asked_to_go_leaves_a_checkpoint_from_which_another_goes_on(
    tiny_world, tmp_path
):
    run_dir, store = str(tmp_path / "run"), Store(tmp_path / "run")
    sets = [*SMALL, "sft.epochs=40", "sft.checkpoint_every=1000"]
    with cluster(workers=2) as nodes:
        command = submitted(
            nodes, run_dir, "--stages", "generate,filter,sft", sets=sets
        )
        command.wait_until(
            lambda: (
                (store.read_json("train/sft/progress.json") or {"step": 0})["step"] > 5
            )
        )
        before, node = (
            store.read_json("train/sft/progress.json"),
            host(nodes, WORK["sft"]),
        )
        node.terminate()
        began = time.monotonic()
        command.wait_until(lambda: _saved(store, "sft") >= before["step"], timeout=30)
        node.wait(timeout=45)
        left = time.monotonic() - began
        code, output = command.wait()
    assert code == 0 and left < 40, (left, output)
    _went_on(run_dir, "sft", before["step"])


def _saved(store: Store, stage: str) -> int:
    """Up to which step of a stage Ray Train has a checkpoint."""
    names = [
        name
        for name in store.list(layout.training(STAGES[stage].key))
        if name.endswith(f"/{STATE}") and "/work-" not in name
    ]
    steps = [TrainState.from_json(store.read(name)).global_step for name in names]
    return max(steps, default=0)


def _noted(store: Store, stage: str) -> int:
    """From after which step Ray Train would go on: it looks for new checkpoints every two seconds, and notes them."""
    for name in store.list(
        layout.training(STAGES[stage].key), "/checkpoint_manager_snapshot.json"
    ):
        with contextlib.suppress(ValueError, TypeError):  # it is being written
            return orjson.loads(store.read(name))["latest_checkpoint_result"][
                "metrics"
            ]["step"]
    return 0


def _went_on(run_dir: str, stage: str, *after: int) -> None:
    """Every worker began once, and then went on from a checkpoint of each of these steps, or from a later one."""
    for first, *later in begun(run_dir, stage).values():
        assert first == ("training begins", 0) and [what for what, _ in later] == [
            "training resumes"
        ] * len(after)
        assert all(step >= least for (_, step), least in zip(later, after, strict=True))


def kill_the_driver(nodes, run_dir: str) -> None:
    """SIGKILL to the job's driver on the head."""
    next(
        p
        for p in psutil.Process(nodes.head.pid).children(recursive=True)
        if _is_driver(p, run_dir)
    ).kill()


def _is_driver(process: psutil.Process, run_dir: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "bezoar_ray.cli" in words and run_dir in words and "python" in words[0]


@pytest.mark.soak
def test_the_pool_grows_onto_a_node_that_joins(tiny_world, tmp_path):
    run_dir = str(tmp_path / "run")
    # The first node has room for one engine beside the judge; the second engine needs the second node.
    wide = ["teacher.num_cpus=2", "teacher.max_actors=2"]
    with cluster(workers=1) as nodes:
        command = submitted(nodes, run_dir, "--stages", "generate", sets=[*LONG, *wide])
        command.wait_until(lambda: len(answered(run_dir, "teacher")) > 10)
        joined = nodes.add_worker()
        command.wait_until(lambda: _engines_of(joined) == 1)
        code, output = command.wait()
    assert code == 0, output
    store = Store(run_dir)
    wrote = [
        name for name in store.list("ledger/teacher") if b'"reply"' in store.read(name)
    ]
    assert len(wrote) == 2  # each engine's actor has a segment of its own


def _engines_of(node) -> int:
    return sum(
        "EngineCore" in " ".join(p.cmdline())
        for p in psutil.Process(node.pid).children(recursive=True)
    )


def test_the_demo_as_a_job_on_three_nodes_with_a_bucket_and_one_node_lost(tiny_world):
    """Before the bucket, a server whose answers fail now and then: 5xx, late, or cut."""
    with (
        s3() as server,
        failing(server, faulty=0.03) as proxy,
        cluster(workers=2, environment=environment(proxy.address)) as nodes,
    ):
        run_dir = new_bucket(server)
        command = submitted(nodes, run_dir)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(proxy.address).items():
                patch.setenv(name, value)
            lose_the_node_at_work(nodes, command, run_dir, "generate")
            code, output = command.wait(timeout=1800)
            assert code == 0, output
            found = Store(run_dir).read_json("summary.json")
            assert {stage["status"] for stage in found["stages"].values()} == {"done"}
            assert b"<html" in Store(run_dir).read("report.html")
            assert set(answered(run_dir).values()) == {1} and proxy.faults > 20
