"""Print one line per stage: counts, rate and remaining time.

The output of libraries goes to DIR/logs instead.
"""

import sys
import time

from bezoar_ray.runtime.metrics import set_stage

_METRICS_EVERY = 1.0  # seconds
_TERMINAL_EVERY = 0.2  # seconds
_CLEAR_LINE = "\x1b[2K"


class Progress:
    """Prints how far the current stage is.

    A terminal shows one line that changes. A log file gets a line now and then.
    """

    def __init__(self, every: float = 15.0, run: str = ""):
        """Print to standard output.

        Args:
            every: Seconds between two lines of a log file.
            run: Name of the run, for the metrics.
        """
        self._run = run
        self._is_terminal = sys.stdout.isatty()
        self._every = _TERMINAL_EVERY if self._is_terminal else every
        self.start("")

    def start(self, stage: str) -> None:
        """Begin a new stage."""
        self.stage = stage
        self._began = time.monotonic()
        self._printed_at = 0.0
        self._metrics_at = 0.0
        # Time and count at the first update: start-up is not part of the rate.
        self._first: tuple[float, int] | None = None
        self._last: tuple[int, int] | None = None

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Take the number of units that are done.

        Args:
            done: Units that are done.
            total: Units of the stage, where they are known.
            note: Printed after the counts.
        """
        now = time.monotonic()
        if self._last and done < self._last[0]:
            # A stage may count several things in turn.
            self._first = None
        self._last = (done, total or 0)
        if now - self._metrics_at > _METRICS_EVERY:
            self._metrics_at = now
            set_stage(self._run, self.stage, done, total or 0)
        if now - self._printed_at < self._every:
            return
        self._printed_at = now
        if self._first is None:
            self._first = (now, done)
        since, done_before = self._first
        rate = (done - done_before) / max(now - since, 1e-9)
        text = f"{done}/{total}" if total else f"{done}"
        if rate:
            text += f"  {rate:.1f}/s"
            if total and done < total:
                text += f", {duration((total - done) / rate)} left"
        self._print(f"{text}  {note}", end="\r" if self._is_terminal else "\n")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._print(text, end="\n")

    def finish(self, note: str) -> None:
        """Print the last line of the stage."""
        if self._last:
            set_stage(self._run, self.stage, *self._last)
        seconds = time.monotonic() - self._began
        self._print(f"{note}  ({duration(seconds)})", end="\n")

    def _print(self, text: str, end: str) -> None:
        start = _CLEAR_LINE if self._is_terminal else ""
        print(f"{start}{self.stage:<9} {text.rstrip()}", end=end, flush=True)


def duration(seconds: float) -> str:
    """Write seconds as people read them: 42 s, 3 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
