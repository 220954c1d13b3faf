"""End the processes that a process has started once it is gone, even if it was killed.

It runs as a child of that process: `python -m bezoar_ray.runtime.orphans`.

Ray's agents and its workers that are just starting outlive a killed driver by up to a minute: they wait for a GCS that
died with it.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

_POLL_SECONDS = 0.5
_MARK = (
    "BEZOAR_GUARDED"  # what is younger than the last look is known by its environment
)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Whatever this process starts within the block ends with it."""
    os.environ[_MARK] = str(os.getpid())
    # A session of its own: Ctrl-C is for the driver, which ends what it started by itself.
    with subprocess.Popen(
        [sys.executable, "-m", "bezoar_ray.runtime.orphans"], start_new_session=True
    ) as guardian:
        try:
            yield
        finally:
            guardian.terminate()
            del os.environ[_MARK]  # what is started from now on belongs to no block


def _guard(driver: int) -> None:
    since = psutil.Process().create_time()
    started: set[psutil.Process] = set()
    while os.getppid() == driver:
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(driver).children(recursive=True)
            started |= {process for process in found if process.create_time() >= since}
        time.sleep(_POLL_SECONDS)
    for process in {*started, *filter(_marked, psutil.process_iter())} - {
        psutil.Process()
    }:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _marked(process: psutil.Process) -> bool:
    try:
        return process.environ().get(_MARK) == os.environ[_MARK]
    except psutil.Error:
        return False


if __name__ == "__main__":
    _guard(int(os.environ[_MARK]))
