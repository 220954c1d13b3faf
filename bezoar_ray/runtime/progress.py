"""One line per stage: counts, rate and remaining time. Library logs go to DIR/logs instead."""

import sys
import time

from bezoar_ray.runtime.metrics import set_stage

_TELL_EVERY = 1.0  # seconds


class Progress:
    """Prints how far the current stage is; a terminal sees one line that changes, a log file a line now and then."""

    def __init__(self, every: float = 15.0, run: str = ""):
        self._run = run
        self._live = sys.stdout.isatty()
        self._every = 0.2 if self._live else every
        self.start("")

    def start(self, stage: str) -> None:
        """A new stage begins."""
        self.stage, self._began, self._shown, self._told = (
            stage,
            time.monotonic(),
            0.0,
            0.0,
        )
        self._first: tuple[float, int] | None = None  # start-up is no part of the rate

        self._last: tuple[int, int] | None = None

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """So many of `total` units are done; `note` says what else is worth seeing."""
        now, self._last = time.monotonic(), (done, total or 0)
        if now - self._told > _TELL_EVERY:
            self._told = now
            set_stage(self._run, self.stage, done, total or 0)
        if now - self._shown < self._every:
            return
        self._shown = now
        self._first = self._first or (now, done)
        since, before = self._first
        rate = (done - before) / max(now - since, 1e-9)
        left = (
            f", {duration((total - done) / rate)} left"
            if total and rate and done < total
            else ""
        )
        speed = f"  {rate:.1f}/s{left}" if rate else ""
        self._print(
            f"{done}{f'/{total}' if total else ''}{speed}  {note}",
            end="\r" if self._live else "\n",
        )

    def say(self, text: str) -> None:
        """A line that stays."""
        self._print(text, end="\n")

    def finish(self, note: str) -> None:
        """The stage's last line."""
        if self._last:
            set_stage(self._run, self.stage, *self._last)
        self._print(f"{note}  ({duration(time.monotonic() - self._began)})", end="\n")

    def _print(self, text: str, end: str) -> None:
        clear = "\x1b[2K" if self._live else ""
        print(f"{clear}{self.stage:<9} {text.rstrip()}", end=end, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60} s"
        if whole < 3600
        else f"{whole // 3600} h {whole % 3600 // 60} min"
    )
