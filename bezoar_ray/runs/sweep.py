"""`bezoar sweep`: train a grid of recipes, each in its own run directory.

The stages that no parameter changes run once, and all trials share their files.
"""

import itertools
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import yaml

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import Recipe, load_recipe
from bezoar_ray.report.compare import RunComparison, as_page, as_text, compare
from bezoar_ray.report.plots import ranked
from bezoar_ray.runs.best_trial import Choice, choose, verdict
from bezoar_ray.runs.manifest import fingerprint, is_done, load
from bezoar_ray.runs.orchestrator import run
from bezoar_ray.runs.revisions import pinned_together
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.runtime.session import ray_session
from bezoar_ray.stages import STAGES, manifest_of, training_stages
from bezoar_ray.store import Store
from bezoar_ray.train import heldout

_POLL_SECONDS = 2.0
_GRACE_PERCENT = 25.0  # of a trial's steps, before which it is not stopped early
# Files that stages reuse, and that are not in their manifests.
_SHARED_FOLDERS = (layout.PAIRS, layout.TOKENIZED)


def _last_stage() -> str:
    """The stage whose checkpoint a trial is judged by: the last one that trains."""
    return training_stages()[-1]


def _stages(*recipes: Recipe) -> list[str]:
    """The stages of the trials with these recipes, in order."""
    last_stage = _last_stage()
    used = {last_stage}
    for recipe in recipes:
        used.update(recipe.stages_before(last_stage))
    return [name for name in STAGES if name in used]


@dataclass(frozen=True)
class Trial:
    """One point of the grid."""

    name: str
    recipe: Recipe
    store: Store

    def result(self) -> float | None:
        """Return the held-out accuracy of its last checkpoint, or None before that."""
        return self._scores().get("heldout_accuracy")

    def ci95(self) -> list[float] | None:
        """Return the 95 % interval of the result, or None for an earlier version's."""
        return self._scores().get("heldout_ci95")

    def right(self) -> dict[str, bool] | None:
        """Return whether it gets each held-out pair right, by pair id.

        Trials of earlier versions have no results by pair: None.
        """
        margins = heldout.read(self.store, self.recipe.checkpoint(_last_stage()))
        if margins is None:
            return None
        return {id: heldout.is_right(margin) for id, margin in margins.items()}

    def is_done(self) -> bool:
        """Whether all its stages are done."""
        stage = _last_stage()
        return is_done(self.store, stage, fingerprint(self.recipe, stage, self.store))

    def training_progress(self) -> Any:
        """Return step, total and accuracy of the last stage, or None before it."""
        return self.store.read_json(layout.progress(STAGES[_last_stage()].key))

    def _scores(self) -> dict[str, Any]:
        summary = self.store.read_json(layout.SUMMARY) or {}
        checkpoint = self.recipe.checkpoint(_last_stage())
        return summary.get("train", {}).get(checkpoint, {})


def trials(
    recipe: str, overrides: list[str], parameters: list[str], store: Store
) -> list[Trial]:
    """Return the points of the grid that parameters span over a recipe.

    Args:
        overrides: `key.path=value`, for all trials.
        parameters: `key.path=value,value`.

    Raises:
        RecipeError: A parameter has no values, or a value does not fit the recipe.
    """
    grid = []
    for point in itertools.product(*map(_settings, parameters)):
        name = ",".join(point)
        trial_recipe = load_recipe(recipe, [*overrides, *point])
        grid.append(Trial(name, trial_recipe, Store(f"{store.root}/sweep/{name}")))
    return grid


def _settings(parameter: str) -> list[str]:
    """Split `key=a,b` into `key=a` and `key=b`."""
    key, _, values = parameter.partition("=")
    settings = [
        f"{key}={value.strip()}" for value in values.split(",") if value.strip()
    ]
    if not settings:
        raise RecipeError(
            f"--param {parameter!r}: expected key.path=value,value, as in "
            "align.beta=0.1,0.5"
        )
    return settings


# Report.


def report(trials: list[Trial], store: Store) -> str:
    """Rank the trials that have a result, and write sweep.html.

    Half of the held-out pairs choose the best trial, and the other half tell how good
    it is.

    Returns:
        The same as text, with the progress of trials that have no result yet.
    """
    finished = [trial for trial in trials if trial.result() is not None]
    unfinished = [
        _describe_progress(trial) for trial in trials if trial.result() is None
    ]
    if not finished:
        return "\n".join(["no trial has a result yet", *unfinished])
    right_by_trial = {}
    for trial in finished:
        right = trial.right()
        if right:
            right_by_trial[trial.name] = right
    choice = choose(right_by_trial)
    finished = _best_first(finished, choice)
    notes = [*_verdict(finished, right_by_trial, choice), *unfinished]
    table = compare([(trial.name, trial.recipe, trial.store) for trial in finished])
    table = _with_halves(table, choice)
    chart = ranked(
        "Held-out pairs right",
        {trial.name: trial.result() or 0.0 for trial in finished},
        {trial.name: trial.ci95() for trial in finished},
    )
    store.replace("sweep.html", as_page(table, chart, notes))
    return "\n".join([as_text(table), "", *notes, "", f"{store.root}/sweep.html"])


def _best_first(trials: list[Trial], choice: Choice | None) -> list[Trial]:
    """Sort trials by the pairs that select.

    Trials without results by pair come last, by their accuracy on all pairs.
    """
    order = list(choice.selecting) if choice else []

    def rank(trial: Trial) -> tuple[int, float]:
        index = order.index(trial.name) if trial.name in order else len(order)
        return index, -(trial.result() or 0.0)

    return sorted(trials, key=rank)


def _with_halves(table: RunComparison, choice: Choice | None) -> RunComparison:
    """Add the accuracy on the selecting and on the reporting half to the table."""
    if not choice:
        return table
    lines = []
    for label, halves in (
        ("that select", choice.selecting),
        ("the others", choice.reporting),
    ):
        cells = [str(halves.get(name, "–")) for name in table.names]
        lines.append((label, cells))
    results = {"held-out pairs by half, 95 %": lines, **table.results}
    return replace(table, results=results)


def _verdict(
    trials: list[Trial],
    right_by_trial: dict[str, dict[str, bool]],
    choice: Choice | None,
) -> list[str]:
    """Describe the best trial, and name the trials that could not be tested."""
    untested = []
    for trial in trials:
        if trial.name not in right_by_trial:
            untested.append(
                f"{trial.name}: no results by pair, because an earlier version trained "
                "it. It is not tested against the others. To train it again, remove "
                f"{trial.store.root}"
            )
    if choice:
        return verdict(choice) + untested
    no_choice = (
        "the order is by all held-out pairs of each trial, and no test tells the best "
        "from the others"
    )
    if right_by_trial:
        no_choice += ": the trials have too few held-out pairs in common"
    return [no_choice, *untested]


def _describe_progress(trial: Trial) -> str:
    progress = trial.training_progress()
    if not progress:
        return f"{trial.name}: not trained yet"
    accuracy = progress["accuracy"]
    right = "an unknown share" if accuracy is None else f"{100 * accuracy:.0f} %"
    return (
        f"{trial.name}: no result; stopped at step {progress['step']} of "
        f"{progress['total']}, with {right} of its pairs right"
    )


# Training.


def sweep(trials: list[Trial], store: Store, progress: Progress) -> None:
    """Train all trials up to align with Ray Tune, after the stages that they share.

    If all trials have the same method, a trial whose share of right pairs is behind
    the others is stopped early. Methods cannot be compared on the way: with a reference
    model, a pair is right if the model has gained on it; without one, if the chosen
    answer is more likely. The same command resumes a stopped trial only after all
    others are done.

    Raises:
        BezoarError: A trial failed. The others are done nevertheless.
    """
    stages = _stages(*[trial.recipe for trial in trials])
    shared = [stage for stage in stages if _is_shared(trials, stage)]
    if shared == stages:
        raise RecipeError(
            f"--param: no stage up to {_last_stage()} reads it, so all trials would be "
            "the same. Name a field of the recipe that changes training or data"
        )
    recipes = [trial.recipe for trial in trials]
    # Pinned for all trials at once: a run that has begun looks up no commit.
    shared_recipe = pinned_together(recipes, store, progress.say)[0]
    run(shared_recipe, store, shared, progress)
    # Pinned again, because the hub may have answered only when `run` asked.
    recipes = pinned_together(recipes, store, progress.say)
    pinned_trials = [
        replace(trial, recipe=recipe)
        for trial, recipe in zip(trials, recipes, strict=True)
    ]
    with ray_session():
        errors = _train(pinned_trials, store)
    if errors:
        raise BezoarError(
            f"{len(errors)} of {len(trials)} trials failed; the others are done. "
            f"The first: {errors[0]}"
        )


def _is_shared(trials: list[Trial], stage: str) -> bool:
    return len({fingerprint(trial.recipe, stage) for trial in trials}) == 1


def _train(trials: list[Trial], store: Store) -> list[str]:
    """Train the trials that are not done; return the errors of those that failed."""
    import ray
    from ray import tune
    from ray.tune.schedulers import MedianStoppingRule

    # Else Ray Tune prints the traceback of a failed trial instead of its reason.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    remaining = {trial.name: trial for trial in trials if not trial.is_done()}
    if not remaining:
        return []
    methods = {trial.recipe.align.method for trial in trials}
    early_stopping = MedianStoppingRule(
        time_attr="percent", metric="accuracy", mode="max", grace_period=_GRACE_PERCENT
    )
    trainable = tune.with_parameters(
        _trainable(),
        trials=remaining,
        root=str(store.root),
        address=ray.get_runtime_context().gcs_address,
    )
    tuner = tune.Tuner(
        # The process of a trial only waits; its workers ask for their own resources.
        tune.with_resources(trainable, {"CPU": 0.01}),
        param_space={"trial": tune.grid_search(list(remaining))},
        tune_config=tune.TuneConfig(
            scheduler=early_stopping if len(methods) == 1 else None,
            max_concurrent_trials=_max_concurrent_trials(list(remaining.values())),
        ),
        run_config=tune.RunConfig(storage_path=f"{store.root}/sweep/tune", verbose=0),
    )
    results = tuner.fit()
    # The reason is the last line; Ray's frame comes before it.
    return [str(error).strip().splitlines()[-1] for error in results.errors]


def _max_concurrent_trials(trials: list[Trial]) -> int:
    """Return how many trials the cluster can train at a time; at least one."""
    import ray

    resources = ray.cluster_resources()
    # Ray on one machine may have more logical CPUs than the machine has cores.
    cores: float = os.cpu_count() or 1
    if os.environ.get("RAY_ADDRESS"):
        cores = resources.get("CPU", 1)
    sections = [trial.recipe.align for trial in trials]
    by_cpu = min(
        cores // (section.workers * section.cpus_per_worker) for section in sections
    )
    gpus = max(section.workers * section.gpus_per_worker for section in sections)
    if not gpus:
        return max(1, int(by_cpu))
    by_gpu = resources.get("GPU", 0) // gpus
    return max(1, int(min(by_cpu, by_gpu)))


def _trainable() -> type:
    """Return the class that Ray Tune runs for a trial.

    It runs `bezoar run` as a process of its own, and reports its progress.
    """
    from ray import tune

    class TrialRun(tune.Trainable):
        """One trial."""

        def setup(  # type: ignore[override]  # Ray passes the values of with_parameters
            self,
            config: dict[str, Any],
            trials: dict[str, Trial],
            root: str,
            address: str,
        ) -> None:
            self._base = Store(root)
            self._trial = trials[config["trial"]]
            self._reported_step = -1
            share(self._base, self._trial)
            store = self._trial.store
            recipe_path = store.here("sweep.yaml")
            tree = self._trial.recipe.model_dump(mode="json")
            recipe_path.write_text(yaml.safe_dump(tree, sort_keys=False))
            # With a recipe, the run has begun: it keeps the commits of the sweep.
            store.replace(layout.RECIPE, recipe_path.read_bytes())
            command = [sys.executable, "-m", "bezoar_ray.cli", "run", str(recipe_path)]
            stages = ",".join(_stages(self._trial.recipe))
            command += ["--run-dir", str(store.root), "--stages", stages]
            with open(store.log("sweep.log"), "w") as log:
                # It joins this Ray; one of its own would not know
                # which resources are in use.
                self._process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"RAY_ADDRESS": address},
                )

        def step(self) -> dict[str, object]:
            """Wait until the trial has a new accuracy, or ends."""
            while True:
                exit_code = self._process.poll()
                progress = self._trial.training_progress()
                if exit_code:
                    raise BezoarError(f"{self._trial.name}: {self._reason(exit_code)}")
                if exit_code == 0:
                    accuracy = self._trial.result()
                    return {"percent": 100, "accuracy": accuracy, "done": True}
                # kto has no accuracy before its end.
                if (
                    progress
                    and progress["step"] > self._reported_step
                    and progress["accuracy"] is not None
                ):
                    self._reported_step = progress["step"]
                    return {
                        "percent": int(100 * progress["step"] / progress["total"]),
                        "accuracy": progress["accuracy"],
                    }
                time.sleep(_POLL_SECONDS)

        def _reason(self, exit_code: int) -> str:
            """Return the last line that the process printed."""
            text = self._trial.store.log("sweep.log").read_text()
            lines = text.strip().splitlines()
            return lines[-1] if lines else f"exit code {exit_code}"

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, object]:
            """Save nothing: all results are in the run directory of the trial."""
            return {}

        def load_checkpoint(self, checkpoint: object) -> None:
            """Load nothing: see `save_checkpoint`."""

        def cleanup(self) -> None:
            """End the process if it was stopped early, and keep its tokenized rows."""
            # A run treats SIGTERM like Ctrl-C: its training writes a last checkpoint.
            self._process.terminate()
            self._process.wait()
            for name in self._trial.store.list(layout.TOKENIZED):
                if not self._base.exists(name):
                    self._base.adopt(self._trial.store, name)

    return TrialRun


def share(store: Store, trial: Trial) -> None:
    """Give a trial the files of the stages that are done with its recipe.

    A file gets a second name if the disk has hard links.
    """
    for stage in _stages(trial.recipe):
        stage_fingerprint = fingerprint(trial.recipe, stage, trial.store)
        if not is_done(store, stage, stage_fingerprint):
            # No later stage can be done, since each one's fingerprint
            # holds those before it.
            break
        if is_done(trial.store, stage, stage_fingerprint):
            continue
        # The manifest comes last: only then the stage counts as done.
        for name in [*load(store, stage).files, manifest_of(stage, store)]:
            trial.store.adopt(store, name)
    for folder in _SHARED_FOLDERS:
        for name in store.list(folder):
            trial.store.adopt(store, name)
