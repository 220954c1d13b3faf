"""What the embedded recipe must show for several seeds, and that the filter earns its price. By hand: `make soak`."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean

import orjson
import pytest

from bezoar_ray.stages import STAGES
from tests.end_to_end import CHECKPOINTS, Command, summary

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
SEEDS = (0, 1, 2)
SCHEMES = ("lamini", "orca", "evol_instruct")
_SFT_ALONE = [
    "hh_sft.limit=16",
    "align.limit=16",
    "evaluate.mt_bench.limit=1",
]  # what comes after sft, cut short


def whole_run(run_dir: Path, *sets: str, stages: str = ",".join(STAGES)) -> dict:
    code, output = Command(run_dir, "--stages", stages, sets=list(sets)).wait(3000)
    assert code == 0, output
    return summary(run_dir)


def harness(found: dict, name: str) -> float:
    """Mean over the tasks, one metric each, in points. The task on bias enters none."""
    values = [
        metric["value"]
        for title, task in found["eval"]["harness"][name].items()
        for metric in task.values()
        if title != "tiny_askers"
    ]
    return 100 * sum(values) / len(values)


def table(title: str, found: dict) -> str:
    lines = [
        f"\n{title}",
        "| checkpoint | harness | MT-Bench | over base, 95 % | held-out pairs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in CHECKPOINTS:
        bench = found["eval"]["mt_bench"][name]
        low, high = bench.get("versus_base", {}).get("ci95") or (0, 0)
        accuracy = found["train"][name]["heldout_accuracy"]
        lines.append(
            f"| {name} | {harness(found, name):.1f} | {bench['score']:.2f} | {low:.2f} to {high:.2f} | {accuracy:.2f} |"
        )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def runs(tiny_world, tmp_path_factory) -> Callable[[int], tuple[Path, dict]]:
    """The whole run of a recipe seed: its folder and summary."""

    @cache
    def of(seed: int) -> tuple[Path, dict]:
        folder = tmp_path_factory.mktemp(f"seed-{seed}")
        return folder, whole_run(folder, f"seed={seed}")

    return of


@pytest.mark.parametrize("seed", SEEDS)
def test_the_recipe_helps_whatever_the_seed(seed, runs):
    _, found = runs(seed)
    print(table(f"seed {seed}", found))
    assert harness(found, "sft") >= harness(found, "base") + 20
    assert harness(found, "dpo") >= harness(found, "sft") - 3
    for name in ("sft", "dpo"):
        assert found["eval"]["mt_bench"][name]["versus_base"]["ci95"][0] > 0
    assert found["train"]["dpo"]["heldout_accuracy"] >= 0.8
    assert (
        found["train"]["dpo"]["heldout_accuracy"]
        > found["train"]["hh-sft"]["heldout_accuracy"]
    )


@pytest.mark.parametrize("method", ["kto", "orpo", "asft"])
def test_every_method_gets_more_held_out_pairs_right(method, runs, tmp_path):
    folder, found = runs(0)
    shutil.copytree(folder, tmp_path / "run")
    other = whole_run(
        tmp_path / "run", "seed=0", f"align.method={method}", stages="align"
    )
    before = found["train"]["hh-sft"]["heldout_accuracy"]
    print(
        f"\n{method}: {before:.2f} -> {other['train'][method]['heldout_accuracy']:.2f}"
    )
    assert other["train"][method]["heldout_accuracy"] > before


def test_unfiltered_data_makes_a_worse_model(runs, tmp_path):
    """As many rows as gates and judge have let through, but as they were generated: for the same number of steps."""
    scores = []
    for seed in SEEDS:
        folder, filtered = runs(seed)
        shutil.copytree(folder, tmp_path / str(seed))
        kept = {name: filtered["data"][name]["accepted"] for name in SCHEMES}
        raw = {
            f"raw_{name}": {
                "source": f"{folder}/data/{name}/generated/*.parquet",
                "limit": count,
            }
            for name, count in kept.items()
        }
        sets = [
            f"sft.data={orjson.dumps(raw).decode()}",
            f"sft.order={orjson.dumps(list(raw)).decode()}",
            *_SFT_ALONE,
        ]
        unfiltered = whole_run(tmp_path / str(seed), f"seed={seed}", *sets)
        assert unfiltered["stages"]["filter"]["skipped"]
        scores.append((harness(filtered, "sft"), harness(unfiltered, "sft")))
        rows = [found["train"]["sft"]["rows"] for found in (filtered, unfiltered)]
        print(
            f"\n| {seed} | {rows[0]} | {scores[-1][0]:.1f} | {rows[1]} | {scores[-1][1]:.1f} |"
        )
    assert fmean(without for _, without in scores) < fmean(
        with_filter for with_filter, _ in scores
    )
