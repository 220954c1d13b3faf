"""No engine outlives the process that started it."""

import os
import signal
import subprocess
import sys
import time

import psutil

PARENT = """
import multiprocessing, sys, time
from bezoar_ray.runtime.engine_parent import bind_children

if __name__ == "__main__":
    bind_children()
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    child.start()
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    )
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(1.0)
    assert child.is_running()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    child.wait(timeout=10)
