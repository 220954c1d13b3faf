"""Ray for a run on this machine."""

import os
import subprocess
import sys

ATTACH = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"


def test_a_laptops_own_ray_lets_nobody_in_without_its_token(ray_session):
    import ray

    command = [sys.executable, "-c", ATTACH, ray.get_runtime_context().gcs_address]

    def attached(mode: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, env=os.environ | {"RAY_AUTH_MODE": mode}, capture_output=True, text=True)

    refused = attached("disabled")
    assert refused.returncode != 0 and "token" in refused.stderr.lower()
    assert attached("token").returncode == 0  # this user's, in ~/.ray
