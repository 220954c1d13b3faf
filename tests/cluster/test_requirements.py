"""Nodes whose image has no bezoar_ray: `--requirements` has Ray install the pins, and sends this package along."""

from pathlib import Path

import pytest

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.store import Store
from tests.cluster.jobs import submitted
from tests.cluster.nodes import cluster
from tests.end_to_end import SMALL
from tests.endpoint import serving
from tests.scripted import says

PINS = Path(__file__).parents[2] / "cluster/requirements-cpu.txt"
SMALL_PACKAGE = "cowsay==6.1 --hash=sha256:274b1e6fc1b966d53976333eb90ac94cb07a450a700b455af9fbdf882244b30a\n"
SCHEME = """
import bezoar_ray
import cowsay


async def places(task, chat, settings):
    yield task.sample("places", instruction=cowsay.__file__, response=bezoar_ray.__file__)
"""


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_all_pins_and_this_package_are_where_the_actors_run(tmp_path):
    (tmp_path / "own.py").write_text(SCHEME)
    (tmp_path / "pins.txt").write_text(PINS.read_text() + SMALL_PACKAGE)
    with serving(says) as server, cluster(workers=1) as nodes:
        sets = [
            *SMALL,
            f'teacher={{"model": "scripted", "base_url": "{server.url}"}}',
            f"generate.own.places.function={tmp_path}/own.py:places",
        ]
        pins = ("--requirements", str(tmp_path / "pins.txt"))
        code, output = submitted(
            nodes, str(tmp_path / "run"), "--stages", "generate", *pins, sets=sets
        ).wait()
    assert code == 0, output
    for sample in read_samples(Store(tmp_path / "run"), "places", "generated"):
        assert (
            "/runtime_resources/uv/" in sample.instruction
        )  # of the environment that Ray made
        assert "/runtime_resources/py_modules_files/" in sample.response
