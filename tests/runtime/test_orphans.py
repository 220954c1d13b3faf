"""No process of a run outlives it, even when the driver alone is killed."""

import subprocess
import sys

import psutil

DRIVER = """
import time, ray
from bezoar_ray.runtime.session import ray_session

with ray_session():
    ray.get([ray.remote(lambda: None).remote() for _ in range(2)])
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_killed_driver_leaves_nothing_of_its_ray():
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout.readline() == "ready\n"
    started = psutil.Process(driver.pid).children(recursive=True)
    assert len(started) > 5
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert [process.cmdline() for process in alive] == []


BETWEEN = """
import subprocess, time
from bezoar_ray.runtime.orphans import guarded

with guarded():
    pass
between = subprocess.Popen(["sleep", "60"])
time.sleep(1)
with guarded():
    time.sleep(2)
    within = subprocess.Popen(["sleep", "60"])
    print(between.pid, within.pid, flush=True)
    time.sleep(60)
"""


def test_what_the_driver_started_outside_is_left_alone():
    driver = subprocess.Popen(
        [sys.executable, "-c", BETWEEN], stdout=subprocess.PIPE, text=True
    )
    between, within = map(psutil.Process, map(int, driver.stdout.readline().split()))
    driver.kill()
    driver.wait()
    within.wait(timeout=10)
    assert between.is_running() and between.status() != psutil.STATUS_ZOMBIE
    between.kill()
