"""End the processes that a process has started once it is gone, even if it was killed.

It runs as a child of that process: `python -m bezoar_ray.runtime.orphans`.

Ray's agents, and its workers that are just starting, outlive a killed driver by up to a
minute: they wait for a GCS that died with it.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

_POLL_SECONDS = 0.5
_MARK = "BEZOAR_GUARDED"
"""Marks, by its environment, a process that is younger than the last poll."""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Have everything that this process starts within the block end with it."""
    os.environ[_MARK] = str(os.getpid())
    command = [sys.executable, "-m", "bezoar_ray.runtime.orphans"]
    # In a session of its own: Ctrl-C is for the driver, which ends its processes itself.
    with subprocess.Popen(command, start_new_session=True) as guardian:
        try:
            yield
        finally:
            guardian.terminate()
            del os.environ[_MARK]  # later processes do not belong to the block


def _guard(driver: int) -> None:
    """Wait until the driver is gone, and kill what it has started."""
    own = psutil.Process()
    since = own.create_time()
    started: set[psutil.Process] = set()
    # A process whose parent has died gets another one.
    while os.getppid() == driver:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(driver).children(recursive=True):
                # What the driver had started before does not belong to the block.
                if child.create_time() >= since:
                    started.add(child)
        time.sleep(_POLL_SECONDS)
    marked = {process for process in psutil.process_iter() if _is_marked(process)}
    for process in (started | marked) - {own}:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _is_marked(process: psutil.Process) -> bool:
    try:
        return process.environ().get(_MARK) == os.environ[_MARK]
    except psutil.Error:
        return False


if __name__ == "__main__":
    _guard(int(os.environ[_MARK]))
