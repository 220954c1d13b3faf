"""Ray for a run on this machine."""

import os
import subprocess
import sys

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.runtime.session import check_shared
from bezoar_ray.store import Store

ATTACH = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"


def test_a_laptops_own_ray_lets_nobody_in_without_its_token(ray_session):
    import ray

    command = [sys.executable, "-c", ATTACH, ray.get_runtime_context().gcs_address]

    def attached(mode: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            env=os.environ | {"RAY_AUTH_MODE": mode},
            capture_output=True,
            text=True,
        )

    refused = attached("disabled")
    assert refused.returncode != 0 and "token" in refused.stderr.lower()
    assert attached("token").returncode == 0  # this user's, in ~/.ray


def test_a_folder_on_the_heads_own_disk_is_refused_at_once_where_nodes_may_come(
    ray_session, tmp_path, monkeypatch
):
    if os.stat(tmp_path).st_dev != os.stat("/").st_dev:
        pytest.skip("the folder for tests is on another disk")
    check_shared(Store(tmp_path))
    monkeypatch.setattr("bezoar_ray.runtime.session.grows", lambda: True)
    with pytest.raises(
        RecipeError, match="on the head's own disk, .*Use a folder that"
    ):
        check_shared(Store(tmp_path))
