"""What a cluster of three real nodes refuses, at once and with the remedy."""

import subprocess
from types import SimpleNamespace

import pytest

from tests.cluster.jobs import submitted
from tests.cluster.nodes import Nodes, cluster
from tests.end_to_end import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """A folder that one of the nodes does not see."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def nodes(hidden) -> Nodes:
    """A head and two workers, the second of them blind to a folder."""
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", hidden], check=False).returncode:
        pytest.skip("only root can hide a folder from a process")
    with cluster(workers=1) as found:
        found.workers.append(found.add_worker(blind_to=hidden))
        yield found


def test_a_folder_that_a_node_does_not_see(nodes, hidden):
    code, output = submitted(nodes, str(hidden / "run")).wait(timeout=200)
    assert code == 2 and "of the cluster's 3 nodes do not see it. Use a folder that is mounted on all" in output


def test_a_teacher_for_which_no_node_has_the_gpus(nodes, tiny_world, tmp_path):
    code, output = submitted(nodes, str(tmp_path / "run"), sets=[*SMALL, "teacher.num_gpus=2"]).wait(timeout=200)
    assert code == 2 and "2 GPU" in output and "no node of the cluster has that. The largest has" in output


def test_somebody_with_another_token(nodes, tmp_path):
    stranger = SimpleNamespace(address=nodes.address, access=nodes.access | {"RAY_AUTH_TOKEN": "another"})
    code, output = submitted(stranger, str(tmp_path / "run")).wait(timeout=200)
    assert code == 2 and "Invalid authentication token" in output and "RAY_AUTH_TOKEN open a guarded" in output
