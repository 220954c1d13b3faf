"""End an engine's core process with the process that started it, even after SIGKILL.

vLLM starts the core as a spawned child, imports for some 20 s in it, and then waits for
requests on a socket that never tells it that the other side is gone. So the watch on the
parent has to be the first thing that the child unpickles.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable

_POLL_SECONDS = 1.0


def bind_children() -> None:
    """Have later children of this process die within seconds of its end.

    It concerns processes that multiprocessing spawns.
    """
    # Private, but there is no other way in: this configuration is copied into every
    # child, before its target.
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["bond"] = _Bond()


class _Bond:
    """Starts to watch the parent where it is unpickled: in the child."""

    def __reduce__(self) -> "tuple[Callable[[int], _Bond], tuple[int]]":
        return _follow_parent, (os.getpid(),)


def _follow_parent(parent: int) -> _Bond:
    threading.Thread(
        target=_watch, args=(parent,), name="watch-parent", daemon=True
    ).start()
    return _Bond()


def _watch(parent: int) -> None:
    # Not PR_SET_PDEATHSIG: it fires when the parent's starting thread ends, which Ray's
    # actors may outlive.
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
