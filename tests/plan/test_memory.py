"""The GPU memory that each stage is planned to need, and the largest pass that fits."""

import json
import re

import pytest

from bezoar_ray.plan import plan, render
from bezoar_ray.plan.memory import training_pass
from bezoar_ray.recipe import load_recipe
from bezoar_ray.runtime.gpus import GPUS
from bezoar_ray.runtime.model_shapes import shape_of


def gpu_needs(recipe, card):
    return {need.stage: need for need in plan(recipe, gpu=GPUS[card]).needs}


def test_what_was_measured_on_an_h200_is_what_the_plan_foretells():
    """A table measured on one H200: GiB of passes of a 3.4 B model, adapters on all linear layers."""
    lora = {
        "targets": [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
    }
    for tokens, recomputed, compiled, gib in (
        (3_839, False, False, 21.3),
        (16_210, False, False, 82.3),
        (16_210, True, False, 10.8),
        (3_839, False, True, 18.5),
        (16_210, True, True, 10.8),
    ):
        sets = [
            f"sft.micro_tokens={tokens}",
            f"sft.gradient_checkpointing={recomputed}",
            "sft.workers=1",
            f"sft.lora={json.dumps(lora)}",
            "sft.batch=64",
        ]
        found = training_pass(
            load_recipe("openbezoar-3b", sets), "sft", memory=141, compiled=compiled
        )
        assert (found.tokens, found.recomputed) == (tokens, recomputed)
        assert found.gib == pytest.approx(gib, rel=0.05)


def test_the_memory_of_each_stage_is_said_and_whether_it_fits():
    found = gpu_needs(load_recipe("openbezoar-3b"), "A100")
    assert list(found) == ["generate", "sft", "hh-sft", "align", "evaluate"]
    assert all(need.fits for need in found.values())
    small = gpu_needs(load_recipe("openbezoar-3b"), "L4")
    assert not small["generate"].fits and small["sft"].fits
    text = render(plan(load_recipe("openbezoar-3b"), gpu=GPUS["L4"]))
    assert "Memory of an L4 (22 GiB), estimated" in text
    assert (
        "at least 40.6 GiB, and no space is left for a cache on 2 GPUs: DOES NOT FIT"
        in text
    )
    assert (
        "open_llama_3b_v2: at least 6.4 GiB, passes of up to 4,096 tokens take 19.3, activations kept: fits"
        in text
    )
    assert not plan(load_recipe("tiny")).needs and "Memory of" not in render(
        plan(load_recipe("tiny"))
    )


def test_memory_counts_compiled_layers_where_training_would_compile():
    few, many = (
        gpu_needs(load_recipe("openbezoar-3b", [f"sft.epochs={count}"]), "H100")["sft"]
        for count in (0.5, 3)
    )
    assert (
        "passes of up to 8,192 tokens" in few.note
    )  # of 103 steps, which are not worth compiling
    assert "passes of up to 16,384 tokens" in many.note  # of 619


def test_a_share_of_a_gpu_is_planned_as_that_share():
    half, whole = (
        gpu_needs(
            load_recipe("modern", [f"sft.gpus_per_worker={share}", "sft.workers=1"]),
            "H100",
        )["sft"]
        for share in (0.5, 1)
    )
    taken = [
        float(re.search(r"take ([\d.]+)", need.note).group(1)) for need in (half, whole)
    ]
    assert taken[0] < 79.1 / 2 < taken[1]


def test_an_engine_holds_its_longest_sequence_or_does_not_fit():
    set_length = gpu_needs(
        load_recipe("one-gpu", ["teacher.engine={max_model_len: 4096}"]), "L4"
    )["generate"]
    its_own = gpu_needs(load_recipe("one-gpu", ["teacher.engine={}"]), "L4")["generate"]
    assert set_length.fits and not its_own.fits
    assert "without engine.max_model_len it requests 262,144" in str(its_own)


@pytest.mark.parametrize(
    ("told", "tokens"),
    [("8k", 8_000), ("8K", 8_192), ("auto", 1), (-1, 1), (4096, 4096)],
)
def test_the_longest_sequence_may_be_told_as_vllm_reads_it(told, tokens):
    need = gpu_needs(
        load_recipe("one-gpu", [f"serve.engine={{max_model_len: {told}}}"]), "L4"
    )["evaluate"]
    weights = 2 * shape_of("qwen3-1.7b").weights / 2**30
    cache = tokens * 2 * shape_of("qwen3-1.7b").kv_numbers / 2**30
    assert need.least == pytest.approx(weights + 2 + cache)


def test_quantised_weights_are_counted_as_such():
    whole, named, told = (
        gpu_needs(
            load_recipe(
                "modern", [f"teacher.model={model}", f"teacher.engine={engine}"]
            ),
            "L4",
        )["generate"]
        for model, engine in (
            ("Qwen/Qwen3-14B", "{max_model_len: 4096}"),
            ("Qwen/Qwen3-14B-AWQ", "{max_model_len: 4096}"),
            ("Qwen/Qwen3-14B", "{max_model_len: 4096, quantization: fp8}"),
        )
    )
    assert named.least < told.least < whole.least and named.fits and not whole.fits
    like = gpu_needs(
        load_recipe("modern", ["teacher.model=/models/checkpoint4-14b"]), "L4"
    )["generate"]
    assert like.least > 25  # "int4" is a part of a word there


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", "planned by its 56 billion weights"),
        ("HuggingFaceTB/SmolLM2-135M", "planned by its 0.135 billion weights"),
        ("deepseek-ai/DeepSeek-V3", "planned as if it had 7 billion weights"),
    ],
)
def test_what_is_known_of_a_models_size_is_said(model, said):
    assert said in str(
        gpu_needs(load_recipe("modern", [f"teacher.model={model}"]), "H100")["generate"]
    )


def test_hours_and_memory_of_a_local_model_are_of_the_same_size(tmp_path):
    config = {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    hours = [
        sum(
            step.gpu_hours
            for step in plan(load_recipe("modern", [f"teacher.model={model}"])).steps
            if step.stage == "generate"
        )
        for model in (tmp_path / "mine", "org/other-70.5b")
    ]
    assert hours[0] == pytest.approx(hours[1], rel=0.01)


def test_under_zero_3_weights_are_shared_and_activations_recomputed():
    sets = ["base.model=org/large-70b", "sft.load_in_4bit=false"]
    alone = gpu_needs(load_recipe("modern", sets), "H100")["sft"]
    recipe = load_recipe(
        "modern", [*sets, "sft.zero_stage=3", "sft.workers=8", "sft.compile=true"]
    )
    shared = gpu_needs(recipe, "H100")["sft"]
    assert (
        "no space for a row" in alone.note and "activations recomputed" in shared.note
    )
    assert float(re.search(r"take ([\d.]+)", shared.note).group(1)) < 40
    assert not recipe.sft.compiles(1000)


def test_a_float32_base_keeps_twice_as_much():
    sets = ["sft.micro_tokens=2048", "sft.gradient_checkpointing=false"]
    half, whole = (
        gpu_needs(load_recipe("modern", [*sets, f"base.dtype={kind}"]), "H100")["sft"]
        for kind in ("bfloat16", "float32")
    )
    half, whole = (
        float(re.search(r"take ([\d.]+)", need.note).group(1)) for need in (half, whole)
    )
    assert 1.8 < whole / half < 2.1


def test_a_merge_that_does_not_fit_is_named():
    need = gpu_needs(load_recipe("modern", ["base.model=Qwen/Qwen3-14B"]), "L4")["sft"]
    assert not need.fits and "merging at the end takes 27.5" in need.note


def test_an_engine_spread_through_ray_takes_gpus_beside_its_actor():
    engine = "{tensor_parallel_size: 2, distributed_executor_backend: ray, max_model_len: 4096}"
    found = plan(
        load_recipe("modern", ["teacher.num_gpus=0", f"teacher.engine={engine}"])
    )
    assert sum(step.gpu_hours for step in found.steps if step.stage == "generate") > 0
    assert found.needs[0].stage == "generate" and "on 2 GPUs" in str(found.needs[0])


def test_stages_that_have_nothing_to_train_on_need_no_memory():
    assert "align" not in gpu_needs(load_recipe("modern", ["seeds.hh_rlhf=[]"]), "H100")
    assert "align" not in gpu_needs(
        load_recipe("modern", ["align.method=none"]), "H100"
    )


def test_a_model_whose_name_says_no_size_is_named_as_a_guess():
    recipe = load_recipe("modern", ["base.model=org/mystery"])
    assert "its shape is not known" in render(plan(recipe))


@pytest.mark.parametrize(
    ("part", "tokens", "recomputed"),
    [
        ({}, 16_384, False),
        (
            {"batch": 4, "workers": 2},
            2 * 2048,
            False,
        ),  # no more rows than a worker has of a step
        ({"micro_batch": 3}, 3 * 2048, False),
        ({"gradient_checkpointing": True}, 16_384, True),
    ],
)
def test_the_largest_pass_is_the_one_that_training_would_choose(
    part, tokens, recomputed
):
    sets = [f"sft.{name}={value}" for name, value in part.items()]
    found = training_pass(load_recipe("modern", sets), "sft", memory=80, compiled=False)
    assert (found.tokens, found.recomputed) == (tokens, recomputed)
    assert (
        training_pass(load_recipe("modern", sets), "sft", memory=2, compiled=False)
        is None
    )


def test_ppo_has_no_pairs_but_two_more_adapters():
    def pass_in(memory, method):
        recipe = load_recipe("helpsteer2", [f"align.method={method}"])
        return training_pass(recipe, "align", memory, compiled=False)

    # The longest row has 1,024 tokens, and a pair two of them.
    assert pass_in(2.5, "ppo").tokens == 1024
    assert pass_in(2.5, "dpo").tokens == 2048
    alike = [pass_in(3.0, method) for method in ("dpo", "ppo")]
    assert {found.tokens for found in alike} == {2048}
    assert alike[1].gib > alike[0].gib + 0.3


def test_an_engine_beside_ppo_takes_its_part_of_the_gpu():
    def need(*sets):
        ppo = ["align.method=ppo", "align.gpus_per_worker=1", *sets]
        needs = plan(load_recipe("helpsteer2", ppo), gpu=GPUS["L4"]).needs
        return next(str(need) for need in needs if need.stage == "align")

    alone = need()
    assert "fits" in alone and "OpenRLHF" not in alone
    assert need("align.ppo.engine=vllm") != alone
    crowded = need(
        "align.ppo.engine=vllm",
        "align.ppo.engine_arguments={gpu_memory_utilization: 0.98}",
    )
    assert "DOES NOT FIT" in crowded
    assert "use OpenRLHF or verl" in crowded
