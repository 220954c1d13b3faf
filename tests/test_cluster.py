"""Ray for a run on this machine."""

import os
import subprocess
import sys

import pytest

ATTACH = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"


@pytest.mark.parametrize(
    "access", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "00" * 16}]
)
def test_a_laptops_own_ray_lets_nobody_in_without_its_token(ray_session, access):
    import ray

    command = [sys.executable, "-c", ATTACH, ray.get_runtime_context().gcs_address]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(command, env=own | access, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "token" in done.stderr.lower()
    assert subprocess.run(command, env=own, capture_output=True, timeout=120).returncode == 0
