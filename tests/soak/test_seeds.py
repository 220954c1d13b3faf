"""What the embedded recipe must show for several seeds, and that the filter earns its price. By hand: `make soak`."""

from pathlib import Path

import pytest

from bezoar_ray.recipe import CHECKPOINTS
from tests.end_to_end import Command, summary

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def whole_run(run_dir: Path, *sets: str) -> dict:
    code, output = Command(run_dir, sets=list(sets)).wait(3000)
    assert code == 0, output
    return summary(run_dir)


def harness(found: dict, name: str) -> float:
    """Mean over the tasks, one metric each, in points."""
    values = [metric["value"] for task in found["eval"]["harness"][name].values() for metric in task.values()]
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


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_recipe_helps_whatever_the_seed(seed, tiny_world, tmp_path):
    found = whole_run(tmp_path, f"seed={seed}")
    print(table(f"seed {seed}", found))
    assert harness(found, "sft") >= harness(found, "base") + 20
    assert harness(found, "dpo") >= harness(found, "sft") - 3
    for name in ("sft", "dpo"):
        assert found["eval"]["mt_bench"][name]["versus_base"]["ci95"][0] > 0
    assert found["train"]["dpo"]["heldout_accuracy"] >= 0.8
    assert found["train"]["dpo"]["heldout_accuracy"] > found["train"]["hh-sft"]["heldout_accuracy"]


def test_unfiltered_data_makes_a_worse_model(tiny_world, tmp_path):
    filtered = whole_run(tmp_path / "filtered")
    unfiltered = whole_run(tmp_path / "unfiltered", "filter.judge=false")
    print(table("filtered", filtered), table("unfiltered", unfiltered))
    assert harness(unfiltered, "sft") < harness(filtered, "sft")
