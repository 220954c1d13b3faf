"""What a reward model must learn in the embedded world, for several seeds. By hand: `make soak`."""

from pathlib import Path

import pytest

from tests.end_to_end import Command, summary

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
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


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_model_tells_good_answers_whatever_the_seed(
    seed: int, tiny_world: object, tmp_path: Path
) -> None:
    command = Command(tmp_path, recipe="tiny-rm", sets=[f"seed={seed}"])
    code, output = command.wait(3000)
    assert code == 0, output
    found = summary(tmp_path)
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
