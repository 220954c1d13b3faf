"""A grid of recipes, a run directory for each: the stages that no parameter touches are done once, and shared."""

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

_LOOK_SECONDS = 2.0
_GRACE = 25.0  # per cent of a trial's steps, before which it is not stopped early
_SHARED = (
    layout.PAIRS,
    layout.TOKENIZED,
)  # what stages keep beside the files of their manifests


def _last() -> str:
    """The stage whose checkpoint a trial is judged by: the last one that trains."""
    return training_stages()[-1]


def _stages() -> list[str]:
    """The stages of a trial."""
    return list(STAGES)[: list(STAGES).index(_last()) + 1]


@dataclass(frozen=True)
class Trial:
    """One point of the grid."""

    name: str
    recipe: Recipe
    store: Store

    def result(self) -> float | None:
        """The held-out accuracy of its last checkpoint, once there is one."""
        return self._scores().get("heldout_accuracy")

    def ci95(self) -> list[float] | None:
        """The interval of that; trials of earlier versions have none."""
        return self._scores().get("heldout_ci95")

    def right(self) -> dict[str, bool] | None:
        """Whether it gets each held-out pair right, by the pair's id; None for trials of earlier versions."""
        margins = heldout.read(self.store, self.recipe.checkpoint(_last()))
        if margins is None:
            return None
        return {id: heldout.is_right(margin) for id, margin in margins.items()}

    def _scores(self) -> dict[str, Any]:
        train = (self.store.read_json(layout.SUMMARY) or {}).get("train", {})
        return train.get(self.recipe.checkpoint(_last()), {})


def trials(
    recipe: str, overrides: list[str], parameters: list[str], store: Store
) -> list[Trial]:
    """The points of the grid of `key.path=value,value` parameters over a recipe.

    Raises:
        RecipeError: a parameter without values, or one that makes no recipe.
    """
    points = itertools.product(*map(_values, parameters))
    return [
        Trial(
            name := ",".join(point),
            load_recipe(recipe, [*overrides, *point]),
            Store(f"{store.root}/sweep/{name}"),
        )
        for point in points
    ]


def _values(parameter: str) -> list[str]:
    key, _, values = parameter.partition("=")
    found = [f"{key}={value.strip()}" for value in values.split(",") if value.strip()]
    if not found:
        raise RecipeError(f"--param {parameter!r}: expected key.path=value,value")
    return found


def report(found: list[Trial], store: Store) -> str:
    """The trials that have a result side by side, the best first, and how far the others came: as text, and in
    sweep.html.

    Half of the held-out pairs choose the best; what is said of it is by the other half.
    """
    ended = [trial for trial in found if trial.result() is not None]
    without = [_how_far(trial) for trial in found if trial.result() is None]
    if not ended:
        return "\n".join(["no trial has a result yet", *without])
    by_pair = {trial.name: right for trial in ended if (right := trial.right())}
    choice = choose(by_pair)
    ended = _best_first(ended, choice)
    notes = [*_said(ended, by_pair, choice), *without]
    table = _by_half(
        compare([(trial.name, trial.recipe, trial.store) for trial in ended]), choice
    )
    chart = ranked(
        "Held-out pairs right",
        {trial.name: trial.result() or 0.0 for trial in ended},
        {trial.name: trial.ci95() for trial in ended},
    )
    store.replace("sweep.html", as_page(table, chart, notes))
    return "\n".join([as_text(table), "", *notes, "", f"{store.root}/sweep.html"])


def _best_first(trials: list[Trial], choice: Choice | None) -> list[Trial]:
    """By the pairs that select, and then, of trials without results by pair, by all of them."""
    order = list(choice.selecting) if choice else []

    def rank(trial: Trial) -> tuple[int, float]:
        return (order.index(trial.name) if trial.name in order else len(order)), -(
            trial.result() or 0.0
        )

    return sorted(trials, key=rank)


def _by_half(table: RunComparison, choice: Choice | None) -> RunComparison:
    """The table, with how each trial does on the pairs that select and on the others."""
    if not choice:
        return table
    halves = {"that select": choice.selecting, "the others": choice.reporting}
    lines = [
        (half, [str(shares.get(name, "–")) for name in table.names])
        for half, shares in halves.items()
    ]
    return replace(
        table, results={"held-out pairs by half, 95 %": lines, **table.results}
    )


def _said(
    trials: list[Trial], by_pair: dict[str, dict[str, bool]], choice: Choice | None
) -> list[str]:
    """What can be said of the best trial, and what is missing for more."""
    missing = [
        f"{trial.name}: no results by pair, as an earlier version trained it. It is not tested against the others; to "
        f"have it trained again, remove {trial.store.root}"
        for trial in trials
        if trial.name not in by_pair
    ]
    if choice:
        return verdict(choice) + missing
    unchosen = "the order is by all of each trial's held-out pairs, and no test tells the best from the others"
    if by_pair:
        unchosen += ": too few pairs are held out of all trials"
    return [unchosen, *missing]


def _how_far(trial: Trial) -> str:
    at = trial.store.read_json(layout.progress(STAGES[_last()].key))
    if not at:
        return f"{trial.name}: not trained yet"
    right = (
        "an unknown share"
        if at["accuracy"] is None
        else f"{100 * at['accuracy']:.0f} %"
    )
    return f"{trial.name}: without a result, came to step {at['step']} of {at['total']}, {right} of its pairs right"


def sweep(found: list[Trial], store: Store, progress: Progress) -> None:
    """Train all trials up to align, through Ray Tune: what they share first, then each from there on.

    A trial that is behind the others in the share of pairs it gets right is stopped early, where all have one method:
    with a reference, right is who has gained on it, without one, who is the likelier. The same command goes on with a
    trial where it was stopped only once all others are done.

    Raises:
        BezoarError: a trial failed; the others are done all the same.
    """
    shared = [
        stage
        for stage in _stages()
        if len({fingerprint(t.recipe, stage) for t in found}) == 1
    ]
    if shared == _stages():
        raise RecipeError(
            f"--param: no stage up to {_last()} reads it; all trials would be one"
        )
    recipes = [trial.recipe for trial in found]
    # Of all trials, as a run that has begun asks for no commit; and again, as the hub may have answered `run` first.
    run(pinned_together(recipes, store, progress.say)[0], store, shared, progress)
    recipes = pinned_together(recipes, store, progress.say)
    found = [
        replace(trial, recipe=recipe)
        for trial, recipe in zip(found, recipes, strict=True)
    ]
    with ray_session():
        failed = _tuned(found, store)
    if failed:
        raise BezoarError(
            f"{len(failed)} of {len(found)} trials failed; the others are done. The first: {failed[0]}"
        )


def _tuned(found: list[Trial], store: Store) -> list[str]:
    """Run the trials that are not done; returns what went wrong with those that failed."""
    import ray
    from ray import tune
    from ray.tune.schedulers import MedianStoppingRule

    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # or a failed trial's traceback is shown, not its reason
    left = {
        t.name: t
        for t in found
        if not is_done(t.store, _last(), fingerprint(t.recipe, _last()))
    }
    if not left:
        return []
    behind = MedianStoppingRule(
        time_attr="percent", metric="accuracy", mode="max", grace_period=_GRACE
    )
    alike = len({trial.recipe.align.method for trial in found}) == 1
    address = ray.get_runtime_context().gcs_address
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                _trainable(), trials=left, root=str(store.root), address=address
            ),
            {"CPU": 0.01},
        ),
        param_space={"trial": tune.grid_search(list(left))},
        tune_config=tune.TuneConfig(
            scheduler=behind if alike else None,
            max_concurrent_trials=_room(list(left.values())),
        ),
        run_config=tune.RunConfig(storage_path=f"{store.root}/sweep/tune", verbose=0),
    )
    return [str(error).strip().splitlines()[-1] for error in tuner.fit().errors]


def _room(found: list[Trial]) -> int:
    """How many trials the cluster can train at a time; logical CPUs of one machine are no more than its cores."""
    import ray

    there = ray.cluster_resources()
    cores = (
        there.get("CPU", 1) if os.environ.get("RAY_ADDRESS") else os.cpu_count() or 1
    )
    parts = [trial.recipe.align for trial in found]
    by_cpu = min(cores // (part.workers * part.cpus_per_worker) for part in parts)
    gpus = max(part.workers * part.gpus_per_worker for part in parts)
    return max(1, int(min(by_cpu, there.get("GPU", 0) // gpus) if gpus else by_cpu))


def _trainable() -> type:
    """The class that Ray Tune runs a trial with: `bezoar run` as a process of its own, watched."""
    from ray import tune

    class TrialRun(tune.Trainable):
        """One trial."""

        def setup(  # type: ignore[override]  # Ray Tune hands on what `with_parameters` was given
            self,
            config: dict[str, Any],
            trials: dict[str, Trial],
            root: str,
            address: str,
        ) -> None:
            self._base, self._trial, self._seen = (
                Store(root),
                trials[config["trial"]],
                -1,
            )
            share(self._base, self._trial)
            store = self._trial.store
            recipe, tree = (
                store.here("sweep.yaml"),
                self._trial.recipe.model_dump(mode="json"),
            )
            recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
            store.replace(
                layout.RECIPE, recipe.read_bytes()
            )  # so that it keeps the sweep's names and commits
            command = [sys.executable, "-m", "bezoar_ray.cli", "run", str(recipe)]
            command += ["--run-dir", str(store.root), "--stages", ",".join(_stages())]
            with open(store.log("sweep.log"), "w") as log:
                environment = os.environ | {"RAY_ADDRESS": address}
                self._process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env=environment
                )

        def step(self) -> dict[str, object]:
            """Wait for the next look that shows something new."""
            while True:
                ended, at = (
                    self._process.poll(),
                    self._trial.store.read_json(layout.progress(STAGES[_last()].key)),
                )
                if ended:
                    lines = (
                        self._trial.store.log("sweep.log")
                        .read_text()
                        .strip()
                        .splitlines()
                    )
                    raise BezoarError(
                        f"{self._trial.name}: {lines[-1] if lines else f'exit code {ended}'}"
                    )
                if ended == 0:
                    return {
                        "percent": 100,
                        "accuracy": self._trial.result(),
                        "done": True,
                    }
                if (
                    at and at["step"] > self._seen and at["accuracy"] is not None
                ):  # kto knows none on its way
                    self._seen = at["step"]
                    return {
                        "percent": int(100 * at["step"] / at["total"]),
                        "accuracy": at["accuracy"],
                    }
                time.sleep(_LOOK_SECONDS)

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, object]:
            """Ray Tune keeps nothing of a trial: its run directory holds all."""
            return {}

        def load_checkpoint(self, checkpoint: object) -> None:
            """As nothing is kept."""

        def cleanup(self) -> None:
            """End the run, if it was stopped early, and keep what others can use."""
            self._process.terminate()
            self._process.wait()
            for name in self._trial.store.list(layout.TOKENIZED):
                if not self._base.exists(name):
                    self._base.adopt(self._trial.store, name)

    return TrialRun


def share(store: Store, trial: Trial) -> None:
    """Let a trial have what is done of its recipe: the same files, under a second name where the disk has those."""
    for stage in _stages():
        if not is_done(store, stage, fingerprint(trial.recipe, stage)):
            break
        if is_done(trial.store, stage, fingerprint(trial.recipe, stage)):
            continue
        for name in [*load(store, stage).files, manifest_of(stage, store)]:
            trial.store.adopt(store, name)
    for folder in _SHARED:
        for name in store.list(folder):
            trial.store.adopt(store, name)
