"""No process of a run outlives it, even when the driver alone is killed."""

import os
import subprocess
import sys

import psutil

DRIVER = """
import time, ray
from bezoar_ray.cluster import ray_session

with ray_session():
    ray.get([ray.remote(lambda: None).remote() for _ in range(2)])
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_killed_driver_leaves_nothing_of_its_ray():
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert driver.stdout.readline() == "ready\n"
    started = psutil.Process(driver.pid).children(recursive=True)
    assert len(started) > 5
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert [process.cmdline() for process in alive] == []


def test_what_the_driver_started_before_is_left_alone():
    code = "import subprocess, sys, time; from bezoar_ray.guardian import guarded; "
    code += "before = subprocess.Popen(['sleep', '60']); time.sleep(1)\n"
    code += "with guarded():\n  time.sleep(2); after = subprocess.Popen(['sleep', '60'])\n"
    code += "  print(before.pid, after.pid, flush=True); time.sleep(60)"
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    before, after = map(psutil.Process, map(int, driver.stdout.readline().split()))
    driver.kill()
    driver.wait()
    after.wait(timeout=10)
    assert before.is_running() and before.status() != psutil.STATUS_ZOMBIE
    before.kill()
