"""summary.json: the state of a run, and the results that its stages report."""

import time
from collections.abc import Iterator
from typing import Any

from bezoar_ray import layout
from bezoar_ray.licenses import commercial_use
from bezoar_ray.llm.ledger import KnownAccounts, accounts
from bezoar_ray.recipe import Recipe
from bezoar_ray.runs import environment, manifest
from bezoar_ray.stages import STAGES, StageResult
from bezoar_ray.stats import as_percent
from bezoar_ray.store import Store


class RunSummary:
    """The contents of summary.json while a command runs.

    Each write replaces the whole file, so that a reader never finds half of one.
    """

    def __init__(self, recipe: Recipe, store: Store, session: str):
        self._recipe = recipe
        self._store = store
        self._session = session
        self._started = time.time()
        self._error = ""
        self._failed_results: dict[str, Any] = {}
        # Kept between writes, so that `accounts` reads only segments that have grown.
        self._counted_calls: KnownAccounts = {}
        self._stages: dict[str, dict[str, Any]] = {}
        for stage in STAGES:
            if manifest.exists(store, stage):
                self._stages[stage] = _entry_of_earlier_command(store, stage)

    def start_stages(self, fingerprints: dict[str, str]) -> None:
        """Enter stages as running, and drop those whose results have been removed.

        Args:
            fingerprints: By stage name.
        """
        for name in list(self._stages):
            if not manifest.exists(self._store, name):
                del self._stages[name]
        for name, fingerprint in fingerprints.items():
            self._stages[name] = {
                "status": "running",
                "seconds": 0.0,
                "fingerprint": fingerprint,
                "skipped": False,
            }

    def finish_stage(self, name: str, seconds: float) -> None:
        """Enter a stage as done."""
        self._stages[name]["status"] = "done"
        self._stages[name]["seconds"] = seconds

    def stop_stages(
        self, names: list[str], status: str, seconds: float, results: dict[str, Any]
    ) -> None:
        """Enter those of the stages that are running as failed or interrupted.

        Args:
            results: The part of the summary that the failed stage could still report.
        """
        self._failed_results = results
        for name in names:
            entry = self._stages[name]
            if entry["status"] == "running":
                entry["status"] = status
                entry["seconds"] = seconds

    def set_error(self, message: str) -> None:
        """Keep the error that ends the run."""
        self._error = message

    def write(self, status: str) -> dict[str, Any]:
        """Write summary.json.

        Args:
            status: `running`, `done`, `failed`, `budget`, `review` or `interrupted`.

        Returns:
            The contents of the file.
        """
        summary: dict[str, Any] = {
            "run": {
                "recipe": self._recipe.name,
                "status": status,
                "error": self._error,
                "seconds": round(time.time() - self._started, 1),
                "versions": environment.versions(),
                "hardware": environment.hardware(),
                "git": environment.git_revision(),
            },
            "stages": self._stages,
            "data": {},
            "calls": accounts(self._store.root, self._session, self._counted_calls),
            "train": {},
            "eval": {},
            "commercial_use": commercial_use(self._recipe),
        }
        for stage in STAGES:
            if manifest.exists(self._store, stage):
                _merge_into(summary, manifest.load(self._store, stage).summary)
        # A stage that failed has no manifest, and may have results all the same.
        _merge_into(summary, self._failed_results)
        self._store.replace_json(layout.SUMMARY, summary)
        return summary


def _entry_of_earlier_command(store: Store, stage: str) -> dict[str, Any]:
    done = manifest.load(store, stage)
    return {
        "status": "done",
        "seconds": done.seconds,
        "fingerprint": done.fingerprint,
        "skipped": True,
    }


def _merge_into(summary: dict[str, Any], results: dict[str, Any]) -> None:
    """Add the results of a stage to the summary, dictionary by dictionary."""
    for key, value in results.items():
        if isinstance(value, dict) and isinstance(summary.get(key), dict):
            _merge_into(summary[key], value)
        else:
            summary[key] = value


def headline(result: StageResult) -> str:
    """Describe the result of a stage on one line, for the progress display."""
    if counts_by_scheme := result.summary.get("data"):
        return ", ".join(_row_counts(counts_by_scheme))
    scores: list[str] = []
    for checkpoint, metrics in result.summary.get("train", {}).items():
        scores += _training_scores(checkpoint, metrics)
    return ", ".join(scores) or "done"


def _row_counts(counts_by_scheme: dict[str, Any]) -> Iterator[str]:
    for scheme, counts in counts_by_scheme.items():
        words = [scheme]
        for name, count in counts.items():
            if isinstance(count, int) and count:
                words.append(f"{count} {name}")
        yield " ".join(words)


def _training_scores(checkpoint: str, metrics: dict[str, Any]) -> Iterator[str]:
    """Yield the scores of a checkpoint; a score that was not measured is None."""
    loss = metrics.get("loss_last")
    if loss is not None:
        yield f"{checkpoint} loss_last {loss:.3g}"
    accuracy = metrics.get("heldout_accuracy")
    if accuracy is not None:
        percent = as_percent(accuracy, metrics.get("heldout_ci95"))
        yield f"{checkpoint} heldout_accuracy {percent}"
