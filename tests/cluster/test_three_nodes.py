"""What a cluster of three real nodes refuses, at once and with the remedy; and that it keeps no secret anywhere."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.cluster.jobs import WORK, host, submitted
from tests.cluster.nodes import Nodes, cluster
from tests.end_to_end import SMALL
from tests.endpoint import serving
from tests.scripted import says

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """A folder that one of the nodes does not see."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def nodes(hidden) -> Nodes:
    """A head and two workers, the second of them blind to a folder."""
    if subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", hidden], check=False
    ).returncode:
        pytest.skip("only root can hide a folder from a process")
    with cluster(workers=1) as found:
        found.workers.append(found.add_worker(blind_to=hidden))
        yield found


def test_a_folder_that_a_node_does_not_see(nodes, hidden):
    code, output = submitted(nodes, str(hidden / "run")).wait(timeout=200)
    assert (
        code == 2
        and "of the cluster's 3 nodes do not see it. Use a folder that is mounted on all"
        in output
    )


def test_a_teacher_for_which_no_node_has_the_gpus(nodes, tiny_world, tmp_path):
    code, output = submitted(
        nodes, str(tmp_path / "run"), sets=[*SMALL, "teacher.num_gpus=2"]
    ).wait(timeout=200)
    assert (
        code == 2
        and "2 GPU" in output
        and "no node of the cluster has that. The largest has" in output
    )


def test_somebody_with_another_token(nodes, tmp_path):
    stranger = SimpleNamespace(
        address=nodes.address, access=nodes.access | {"RAY_AUTH_TOKEN": "another"}
    )
    code, output = submitted(stranger, str(tmp_path / "run")).wait(timeout=200)
    assert (
        code == 2
        and "Invalid authentication token" in output
        and "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in output
    )


def test_a_stage_works_on_the_nodes_that_its_labels_name(nodes, tiny_world, tmp_path):
    labelled = nodes.add_worker(labels="bezoar=generate")
    nodes.workers.append(labelled)
    sets = [*SMALL, "teacher.node_labels.bezoar=generate"]
    command = submitted(nodes, str(tmp_path / "run"), "--stages", "generate", sets=sets)
    command.wait_until(lambda: host(nodes, WORK["generate"]) is not None)
    assert host(nodes, WORK["generate"]) is labelled
    code, output = command.wait()
    assert code == 0, output


def test_a_key_and_the_clusters_token_stand_nowhere(nodes, tiny_world, tmp_path):
    """Not in the run directory, what is printed, Ray's logs, what it tells of the job, or the processes' arguments."""
    key, token, run_dir = (
        os.environ["CANARY_KEY"],
        nodes.access["RAY_AUTH_TOKEN"],
        tmp_path / "run",
    )
    with serving(says) as server:
        model = f'{{"model": "scripted", "base_url": "{server.url}", "api_key_env": "CANARY_KEY"}}'
        sets = [*SMALL, f"teacher={model}", f"judges=[{model}]"]
        command = submitted(
            nodes, str(run_dir), "--stages", "generate,filter", sets=sets
        )
        command.wait_until(lambda: len(server.requests) > 20)
        arguments = " ".join(
            word
            for process in psutil.process_iter(["cmdline"])
            for word in process.info["cmdline"] or ()
        )
        code, output = command.wait()
        assert code == 0, output
        assert server.keys == {f"Bearer {key}"}
    places = {
        path: path.read_bytes()
        for folder in (run_dir, *nodes.folders)
        for path in files(folder)
    }
    assert (
        any(path.name.startswith("job-driver") for path in places)
        and run_dir / "summary.json" in places
    )
    told = {
        "printed": output.encode(),
        "arguments": arguments.encode(),
        "job": nodes.told("/api/jobs/"),
    } | places
    assert [
        place
        for place, text in told.items()
        if key.encode() in text or token.encode() in text
    ] == []


def files(folder: Path | str) -> list[Path]:
    """All of them that hold something, but sockets and pipes."""
    return [path for path in Path(folder).rglob("*") if path.is_file()]
