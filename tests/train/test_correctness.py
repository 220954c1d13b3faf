"""What training leaves is what it says: shown on the embedded base, whose answers mean something."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from bezoar_ray import sources
from bezoar_ray.data.schema import Sample, sample_table
from bezoar_ray.recipe import Recipe, load_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import encoding, model_loading, pairs
from bezoar_ray.train.heldout import mean_log_probabilities
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.tokenizer import load_tokenizer
from bezoar_ray.train.training_stages import ALIGN
from tests.train.conftest import in_process, run_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SETTINGS = [
    "sft.workers=1",
    "sft.epochs=4",
    "hh_sft.workers=1",
    "hh_sft.limit=96",
    "align.workers=1",
    "align.limit=96",
    "evaluate.heldout_pairs=40",
]
ASKED = 50
FLAT = Layout("flat")

VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from bezoar_ray.llm.engine import complete_engine_arguments

if __name__ == "__main__":
    folder, prompts = sys.argv[1], json.loads(sys.argv[2])
    engine = LLM(model=folder, dtype="float32", **complete_engine_arguments({}))
    told = SamplingParams(temperature=0.0, max_tokens=64)
    answers = engine.generate([{"prompt_token_ids": ids} for ids in prompts], told, use_tqdm=False)
    print(json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))
"""


def rows(recipe: Recipe) -> list[Sample]:
    seeds = sources.read(recipe.seeds.dolly, "dolly").rows
    return [
        Sample(
            f"{n:05}",
            "lamini",
            "x",
            instruction=seed.instruction,
            input=seed.input,
            response=seed.response,
        )
        for n, seed in enumerate(seeds)
    ]


@pytest.fixture(scope="module")
def chain(ray_session, tiny_world, tmp_path_factory) -> StageContext:
    """All three stages on the embedded base, kept in bfloat16, on the world's own instructions."""
    recipe = load_recipe("tiny", SETTINGS)
    context = StageContext(
        recipe, Store(tmp_path_factory.mktemp("chain")), "test", Progress()
    )
    context.store.replace_table(
        "data/lamini/accepted/part-0.parquet", sample_table(rows(recipe))
    )
    pairs.ensure(context)
    for stage in ("sft", "hh-sft", "dpo"):
        in_process(context, stage)
    return context


@pytest.fixture(scope="module")
def prompts(chain: StageContext) -> list[list[int]]:
    tokenizer = load_tokenizer(chain.recipe)
    asked = [
        [{"role": "user", "content": row.task}] for row in rows(chain.recipe)[:ASKED]
    ]
    return [
        tokenizer.apply_chat_template(m, add_generation_prompt=True)["input_ids"]
        for m in asked
    ]


def answers(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy, one by one."""
    with torch.inference_mode():
        return [
            model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64)[
                0, len(ids) :
            ].tolist()
            for ids in prompts
        ]


def load(context: StageContext, folder: str, **settings: Any) -> Any:
    return model_loading.load(
        context.recipe.base,
        str(context.store.path(f"checkpoints/{folder}")),
        **settings,
    ).eval()


def test_a_trained_model_stops_by_itself(
    chain: StageContext, prompts: list[list[int]]
) -> None:
    ends = load_tokenizer(chain.recipe).eos_token_id
    said = answers(load(chain, "sft/merged"), prompts[:20])
    assert sum(answer[-1] == ends and len(answer) > 1 for answer in said) >= 18


@pytest.mark.parametrize("name", ["sft", "hh-sft", "dpo"])
def test_joined_on_the_base_is_the_merged_chain_within_bfloat16s_rounding(
    chain: StageContext, prompts: list[list[int]], name: str
) -> None:
    config = chain.store.read_json(f"checkpoints/{name}/merged/config.json")
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    merged = load(chain, f"{name}/merged")
    joined = model_loading.with_adapter(
        model_loading.load(chain.recipe.base),
        str(chain.store.path(f"checkpoints/{name}/joined")),
    )
    said, other = answers(merged, prompts), answers(joined.eval(), prompts)
    scored = [
        {"input_ids": ids + a, "labels": [encoding.IGNORED] * len(ids) + a}
        for ids, a in zip(prompts, said, strict=True)
    ]
    apart = [
        abs(a - b)
        for a, b in zip(
            mean_log_probabilities(merged, scored, FLAT),
            mean_log_probabilities(joined, scored, FLAT),
            strict=True,
        )
    ]
    diverged = sum(a != b for a, b in zip(said, other, strict=True))
    print(
        f"\n{name}: mean log-probability {max(apart):.4f} apart at most, {diverged} of {ASKED} answers diverge"
    )
    assert max(apart) < 0.05 and diverged <= ASKED / 5


def test_the_saved_model_says_the_same_in_transformers_and_in_vllm(
    chain: StageContext, prompts: list[list[int]]
) -> None:
    folder = chain.store.path("checkpoints/dpo/merged")
    from transformers import AutoModelForCausalLM

    ours = answers(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        prompts[:12],
    )
    command = [sys.executable, "-c", VLLM, str(folder), json.dumps(prompts[:12])]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ours


def test_dpos_reference_is_hh_sft_in_the_same_quantisation(chain: StageContext) -> None:
    (kept,) = chain.store.path("train/data").glob("cache-*.arrow")
    (data,) = ALIGN.prepare(chain)
    pairs_of_dpo = data.open(chain.store)
    reference = Dataset.from_file(str(kept))
    scored = [
        {
            "input_ids": pair["prompt_ids"] + pair[side],
            "labels": [encoding.IGNORED] * len(pair["prompt_ids"]) + pair[side],
        }
        for pair in pairs_of_dpo.select(range(24))
        for side in ("chosen_ids", "rejected_ids")
    ]
    told = [
        reference[n][f"ref_{side}_logps"]
        for n in range(24)
        for side in ("chosen", "rejected")
    ]
    adapter = str(chain.store.path("checkpoints/hh-sft/adapter"))
    dpo = Job(str(chain.store.root), chain.recipe, "align", "test", ())
    apart = {}
    for name, model in (
        (
            "quantised",
            model_loading.with_adapter(model_loading.for_training(dpo), adapter),
        ),
        ("whole", load(chain, "hh-sft/merged")),
    ):
        found = mean_log_probabilities(model.eval(), scored, FLAT)
        sums = [
            mean * (len(row["labels"]) - row["labels"].count(encoding.IGNORED))
            for mean, row in zip(found, scored, strict=True)
        ]
        apart[name] = fmean(abs(a - b) for a, b in zip(sums, told, strict=True))
    print(f"\nreference log-probabilities of an answer, mean difference: {apart}")
    assert apart["quantised"] < 0.2 and apart["quantised"] < apart["whole"] / 3


def exact(
    context: StageContext, folder: Path, **part: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """sft in float32 on Ray's workers, without dropout: its losses and its adapter."""
    recipe = load_recipe("tiny", [*SETTINGS, "base.dtype=float32"])
    lora = recipe.sft.lora.model_copy(update={"dropout": 0.0})
    settings = {"lora": lora, "load_in_4bit": False, "epochs": 1.0, "limit": 97, **part}
    recipe = recipe.model_copy(update={"sft": recipe.sft.model_copy(update=settings)})
    fresh = replace(context, recipe=recipe, store=Store(folder))
    fresh.store.replace_table(
        "data/lamini/accepted/part-0.parquet", sample_table(rows(recipe))
    )
    found = run_stage(fresh, "sft").summary["train"]["sft"]
    return [point["loss"] for point in found["by_step"]], load_file(
        folder / "checkpoints/sft/adapter/adapter_model.safetensors"
    )


def test_two_workers_of_half_the_batch_train_as_one_of_the_whole_and_the_same_again(
    chain: StageContext, tmp_path: Path
) -> None:
    one, again = exact(chain, tmp_path / "one"), exact(chain, tmp_path / "again")
    two = exact(chain, tmp_path / "two", workers=2)
    assert one[0] == again[0] and all(
        torch.equal(tensor, again[1][name]) for name, tensor in one[1].items()
    )
    assert (
        two[0] == pytest.approx(one[0], abs=1e-4) and len(one[0]) == 7
    )  # the last row is alone
    assert all(
        torch.allclose(tensor, two[1][name], atol=1e-4)
        for name, tensor in one[1].items()
    )
