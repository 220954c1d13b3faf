"""The packaged recipes go through every stage with random-weight miniatures of their real models."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import miniatures
from tests.end_to_end import TRAINED, Command, summary
from tests.endpoint import serving
from tests.scripted import says

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1300)]

# What a laptop lacks is replaced; architecture, prompt wrapper, chat template, LoRA targets and NF4 stay the recipe's.
SMALL = [
    "teacher.revision=null",
    "teacher.actors=1",
    "teacher.num_gpus=0",
    "teacher.engine={max_model_len: 2048}",
    "teacher.max_tokens=256",
    "judges=[{model: tiny-judge, temperature: 0.0}]",
    "base.revision=null",
    "teacher.dtype=float32",
    "serve.dtype=float32",  # CPUs without AVX-512 are slow at bfloat16
    "seeds={dolly: [{source: tiny}], flan: [{source: tiny}], hh_rlhf: [{source: tiny, limit: 120}]}",
    "generate.lamini={calls: 2, per_call: 3}",
    "generate.evol_instruct={seeds: 8, epochs: 2}",
    "generate.orca={rows: 24}",
    "filter.accept_rating=1",  # a random model's rows are as bad as rows can be
    *(
        f"{stage}.{field}"
        for stage in ("sft", "hh_sft", "align")
        for field in ("workers=1", "gpus_per_worker=0", "batch=8", "epochs=1")
    ),
    "hh_sft.limit=32",
    "align.limit=32",
    "serve.num_gpus=0",
    "serve.engine={max_model_len: 2048}",
    "evaluate.harness.tasks=[{task: tiny_choice, metric: acc, limit: 8}]",
    "evaluate.harness.include_path=tiny",
    "evaluate.harness.groups=[]",
    "evaluate.mt_bench={questions: tiny, limit: 2, max_tokens: 64}",
    "evaluate.heldout_pairs=10",
]
RATED = [
    "seeds.helpsteer=[{source: tiny, limit: 60}]",
    "seeds.preferences=[{source: tiny, limit: 30}]",
    *(f"rm.{field}" for field in ("workers=1", "gpus_per_worker=0", "batch=8")),
    "rm.epochs=1",
    "evaluate.reward_bench={one: tiny, two: tiny, limit: 1}",
]
"""Further settings of the recipe with a reward model."""
MODELS = {  # of the teacher, where the recipe runs it, and of the base
    "openbezoar-3b": (miniatures.falcon, miniatures.llama),
    "modern": (miniatures.qwen3, miniatures.qwen3),
    "one-gpu": (miniatures.qwen3, miniatures.qwen3),
    "api-teacher": (None, miniatures.qwen3),
    # With all of helpsteer2, but for dpo, which modern has.
    "helpsteer2-steer": (miniatures.qwen3, miniatures.qwen3),
}
STEERED = [
    "align.steer.iterations=1",
    "align.steer.samples=2",
    "align.steer.prompts=16",
    "align.steer.max_tokens=64",
    "align.steer.batch=8",
    "align.steer.sampler={dtype: float32}",
]
SUMMARIES = [
    "base.revision=null",
    "base.dtype=float32",
    "serve.num_gpus=0",
    "serve.dtype=float32",
    "seeds.hh_rlhf=[{source: tiny, limit: 60}]",
    *(
        f"{stage}.{field}"
        for stage in ("sft", "hh_sft", "rm", "align")
        for field in ("workers=1", "gpus_per_worker=0", "batch=8", "epochs=1")
    ),
    "hh_sft.limit=16",
    "align.limit=16",
    "evaluate.heldout_pairs=10",
]
"""Of drpo-tldr, which has no teacher and no judge."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a scripted teacher."""
    with serving(says) as server:
        yield server.url


def started(recipe: str, folder: Path, endpoint: str) -> tuple[Path, Command]:
    """A recipe's run."""
    teacher, base = MODELS[recipe]
    sets = [*SMALL, f"base.model={base(folder / 'base')}"]
    if recipe == "helpsteer2-steer":
        sets += [*RATED, *STEERED]
    if teacher:
        sets.append(f"teacher.model={teacher(folder / 'teacher')}")
    else:
        sets += [
            f"teacher.base_url={endpoint}",
            "teacher.api_key_env=null",
            "teacher.engine={}",
        ]
    return folder / "run", Command(folder / "run", recipe=recipe, sets=sets)


@pytest.fixture(scope="module")
def running(
    tiny_world, endpoint, tmp_path_factory
) -> Callable[[str], tuple[Path, Command]]:
    """The recipes' runs, two at the same time, as either leaves a core idle while it starts engines and workers."""
    found: dict[str, tuple[Path, Command]] = {}

    def of(recipe: str) -> tuple[Path, Command]:
        place = list(MODELS).index(recipe)
        for name in list(MODELS)[place : place + 2]:
            if name not in found:
                found[name] = started(name, tmp_path_factory.mktemp(name), endpoint)
        return found[recipe]

    return of


@pytest.mark.parametrize("recipe", MODELS)
def test_a_big_recipe_goes_through_every_stage(recipe, running):
    run_dir, command = running(recipe)
    code, output = command.wait(timeout=1200)
    assert code == 0, output
    found = summary(run_dir)
    assert {stage["status"] for stage in found["stages"].values()} == {"done"}
    assert found["data"]["orca"]["accepted"] > 0
    trained = set(TRAINED)
    if recipe == "helpsteer2-steer":
        trained = {"sft", "hh-sft", "rm", "steer"}
        assert found["train"]["steer"]["rounds"]
        assert found["eval"]["reward_bench"]["two"]["overall"] is not None
    assert all(found["train"][name]["steps"] > 0 for name in trained)
    assert (
        found["eval"]["mt_bench"].keys()
        == found["eval"]["harness"].keys()
        == {"base", *trained} - {"rm"}
    )


def test_dr_po_learns_from_summaries_without_a_teacher(tiny_world, tmp_path):
    posts = [
        {"prompt": f"POST: It rained {n} times.\n\nTL;DR:", "completion": f" Rain {n}."}
        for n in range(24)
    ]
    (tmp_path / "posts.jsonl").write_text("\n".join(map(json.dumps, posts)))
    sets = [
        *SUMMARIES,
        f"base.model={miniatures.gpt_neox(tmp_path / 'base')}",
        f"sft.data={{tldr: {{source: {tmp_path / 'posts.jsonl'}}}}}",
    ]
    command = Command(tmp_path / "run", recipe="drpo-tldr", sets=sets)
    code, output = command.wait(timeout=1200)
    assert code == 0, output
    found = summary(tmp_path / "run")
    assert {stage["status"] for stage in found["stages"].values()} == {"done"}
    assert found["train"]["sft"]["rows"] == 24
    assert found["train"]["ppo"]["by_step"][0]["forced"] > 0
    assert found["train"]["ppo"]["heldout_answers"]
    assert not any(calls["attempts"] for calls in found["calls"].values())
