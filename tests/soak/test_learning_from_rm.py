"""What a reward model learns in the embedded world, and policies from it, for several seeds. By hand: `make soak`."""

import shutil
from dataclasses import astuple
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from bezoar_ray import layout
from bezoar_ray.store import Store
from bezoar_ray.train import heldout_answers
from tests.end_to_end import Command, summary
from tests.soak.truth import Truth, greedy, rate

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
RLOO = ["align.ppo.advantage=rloo", "align.ppo.group=4"]
POLICIES = {
    "ppo": ("tiny-ppo", []),
    "rloo": ("tiny-ppo", RLOO),
    "drpo": ("tiny-drpo", []),
}
LEAST_R = {
    "helpfulness": 0.65,
    "correctness": 0.35,
    "complexity": 0.85,
    "verbosity": 0.90,
}
"""Of held-out ratings. The small model knows few facts, so correctness is hard."""
LEAST_PAIRS = {"ratings": 0.72, "hh_rlhf": 0.95}
LEAST_SECTION = {"one": 0.5 + 0.15, "two": 0.25 + 0.15}
"""15 points above chance: one of two in version 1, one of four in version 2."""


def run(folder: Path, recipe: str, seed: int, sets: list[str], *more: str) -> None:
    """Carry out a recipe."""
    settings = [f"seed={seed}", *sets]
    command = Command(folder, *more, recipe=recipe, sets=settings)
    code, output = command.wait(3600)
    assert code == 0, output


@pytest.fixture(scope="module", params=[0, 1, 2])
def first_run(
    request: pytest.FixtureRequest, tiny_world: object, tmp_path_factory: Any
) -> tuple[int, Path]:
    """A seed, and the run directory of the whole recipe tiny-ppo."""
    seed = request.param
    folder = tmp_path_factory.mktemp(f"seed{seed}") / "ppo"
    run(folder, "tiny-ppo", seed, [])
    return seed, folder


def aligned(
    first_run: tuple[int, Path], name: str, recipe: str, sets: list[str]
) -> tuple[Store, dict[str, Any], float]:
    """A copy of the run directory in which a method was trained, its metrics and its minutes."""
    seed, first = first_run
    folder = first.with_name(name)
    if folder != first:
        shutil.copytree(first, folder)
        run(folder, recipe, seed, sets, "--stages", "align,report")
    found = summary(folder)
    return Store(folder), found["train"], found["stages"]["align"]["seconds"] / 60


def shown(truth: Truth) -> str:
    return "helpfulness {:.2f} correctness {:.2f} kind {:.2f} words {:.1f}".format(
        *astuple(truth)
    )


def test_the_reward_model_tells_good_answers(first_run: tuple[int, Path]) -> None:
    """That of the recipe tiny-rm is the same: it differs in hh_sft alone, which rm does not read."""
    seed, folder = first_run
    found = summary(folder)
    rm = found["train"]["rm"]
    bench = found["eval"]["reward_bench"]
    print(f"\nseed {seed}: rm in {found['stages']['rm']['seconds']:.0f} s")
    print({name: score["r"] for name, score in rm["heldout"].items()}, rm["pairs"])
    for version in LEAST_SECTION:
        sections = bench[version]["sections"]
        print(version, {name: round(sections[name]["score"], 2) for name in sections})

    for name, least in LEAST_R.items():
        assert rm["heldout"][name]["r"] >= least, name
    for name, least in LEAST_PAIRS.items():
        assert rm["pairs"][name] >= least, name
    for version, least in LEAST_SECTION.items():
        for name, section in bench[version]["sections"].items():
            assert section["score"] >= least, (version, name)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_gains_score_and_kind_answers_at_a_small_kl(
    first_run: tuple[int, Path], name: str
) -> None:
    store, train, minutes = aligned(first_run, name, *POLICIES[name])
    looks = train["ppo"]["heldout_answers"]
    rows = heldout_answers.read(store, "ppo")
    prompts = [row["prompt"][-1]["content"] for row in rows]
    before, after = (
        rate(prompts, [row["answers"][n]["text"] for row in rows]) for n in (0, -1)
    )
    by_step = train["ppo"]["by_step"]
    kl = fmean(point["kl"] for point in by_step[-5:])
    first_score, last_score = (
        fmean(point["score"] for point in points)
        for points in (by_step[:5], by_step[-5:])
    )
    print(f"\nseed {first_run[0]} {name}: {minutes:.1f} min, KL {kl:.2f}")
    print(f"  score of five iterations {first_score:.2f} to {last_score:.2f}")
    print(f"  held out {looks[0]['score']:.2f} to {looks[-1]['score']:.2f}")
    print(f"  before {shown(before)}\n  after  {shown(after)}")
    print(f"  right {[look['right'] / look['known'] for look in looks]}")
    assert kl <= 6
    if name != "drpo":  # nothing is promised of it
        assert last_score >= first_score + 0.4
        assert after.kind > before.kind


def test_a_round_of_steer_comes_nearer_to_its_goals(
    first_run: tuple[int, Path],
) -> None:
    store, train, minutes = aligned(first_run, "steer", "tiny-steer", [])
    (found,) = train["steer"]["rounds"]
    print(f"\nseed {first_run[0]} steer: {minutes:.1f} min, {found}")
    goals = {goal["verbosity"]: goal for goal in recipe_goals()}
    adapters = {
        "SteerLM 1": layout.part_adapter("steer-0"),
        "round 1": layout.checkpoint("steer").adapter,
    }
    print(f"  hh-sft {shown(greedy(store, layout.checkpoint('hh-sft').adapter))}")
    truth = {}
    for model, adapter in adapters.items():
        for verbosity, goal in sorted(goals.items()):
            truth[model, verbosity] = greedy(store, adapter, goal)
            print(f"  {model}, {verbosity}: {shown(truth[model, verbosity])}")
    assert found["distance_last"] <= 0.75 * found["distance_first"]
    first, last = truth["SteerLM 1", 2], truth["round 1", 2]
    assert last.helpfulness >= first.helpfulness + 0.25
    assert last.correctness >= first.correctness
    assert truth["round 1", 4].words >= 1.3 * truth["round 1", 0].words


def recipe_goals() -> Any:
    from bezoar_ray.recipe import load_recipe

    return load_recipe("tiny-steer").align.steer.goals
