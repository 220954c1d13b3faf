"""An engine's core process ends with the process that started it, even when that one is killed with SIGKILL.

vLLM starts the core as a spawned child, imports for some 20 s in it, and then waits for requests on a socket that
never tells it that nobody is left. So the bond has to be the first thing that the child unpickles.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable

_POLL_SECONDS = 1.0


def bind_children() -> None:
    """Processes that multiprocessing spawns from this one from now on die within seconds of its end."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # private, with no other way in
    config["bond"] = _Bond()  # copied into every child, before its target


class _Bond:
    """Starts to watch the parent where it is unpickled: in the child."""

    def __reduce__(self) -> "tuple[Callable[[int], _Bond], tuple[int]]":
        return _follow, (os.getpid(),)


def _follow(parent: int) -> _Bond:
    threading.Thread(target=_watch, args=(parent,), name="fate", daemon=True).start()
    return _Bond()


def _watch(parent: int) -> None:
    # Not PR_SET_PDEATHSIG: it fires when the parent's starting thread ends, which Ray's actors may outlive.
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
