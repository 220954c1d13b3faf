"""What vLLM's server is told."""

import json
from pathlib import Path

import pytest

from bezoar_ray.errors import BezoarError
from bezoar_ray.llm import engine
from bezoar_ray.recipe import Recipe, parse_recipe
from bezoar_ray.serve.arguments import (
    engine_arguments,
    modes,
    modes_with_reward_model,
)
from bezoar_ray.store import Store


def recipe(**serve) -> Recipe:
    tree = {
        "name": "t",
        "teacher": {"model": "m"},
        "judges": [{"model": "j"}],
        "base": {"model": "/models/b"},
    }
    return parse_recipe(tree | {"seeds": {}, "serve": serve}, "t")


def run_directory(folder: Path, **ranks: int) -> Store:
    base = folder / "checkpoints/base"
    base.mkdir(parents=True)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    for name, rank in ranks.items():
        joined = folder / "checkpoints" / name / "joined"
        joined.mkdir(parents=True)
        (joined / "adapter_config.json").write_text(
            json.dumps({"r": rank, "target_modules": ["q_proj", "o_proj"]})
        )
    return Store(folder)


def base_arguments(recipe: Recipe, store: Store) -> list[str]:
    return engine_arguments(recipe, store)["base"]


def value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_every_checkpoint_that_exists_is_served_in_the_order_of_training(tmp_path):
    store = run_directory(tmp_path, dpo=32, sft=16)
    assert modes(recipe(), store) == {"base": "base", "sft": "joined", "dpo": "joined"}
    (arguments,) = engine_arguments(recipe(), store).values()
    modules = arguments[arguments.index("--lora-modules") + 1 :][:2]
    paths = {name: f"{tmp_path}/checkpoints/{name}/joined" for name in ("sft", "dpo")}
    assert list(map(json.loads, modules)) == [
        {"name": name, "path": path} for name, path in paths.items()
    ]


def test_a_reward_model_has_an_engine_of_its_own_and_is_not_asked_for_answers(tmp_path):
    store = run_directory(tmp_path, sft=16)
    (tmp_path / "checkpoints/rm/merged").mkdir(parents=True)
    (tmp_path / "checkpoints/rm/merged/config.json").write_text("{}")
    assert "rm" not in modes(recipe(), store)
    assert modes_with_reward_model(recipe(), store)["rm"] == "merged"
    engines = engine_arguments(recipe(), store)
    assert value(engines["rm"], "--runner") == "pooling"
    assert value(engines["rm"], "--model") == f"{tmp_path}/checkpoints/rm/merged"
    assert "--runner" not in engines["base"]
    assert "rm" not in engine_arguments(recipe(reward_model=False), store)


def test_vllm_finds_the_loras_of_a_trial_whose_folder_names_its_values(tmp_path):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    trial = tmp_path / "align.beta=0.1,align.epochs=2"
    arguments = base_arguments(recipe(), run_directory(trial, dpo=16))
    (found,) = (
        make_arg_parser(FlexibleArgumentParser()).parse_args(arguments).lora_modules
    )
    assert (found.name, found.path) == ("dpo", f"{trial}/checkpoints/dpo/joined")


def test_room_is_made_for_the_largest_rank(tmp_path):
    assert (
        value(
            base_arguments(recipe(), run_directory(tmp_path, sft=16, dpo=64)),
            "--max-lora-rank",
        )
        == "64"
    )


def test_without_checkpoints_base_is_served_alone(tmp_path):
    arguments = base_arguments(recipe(), run_directory(tmp_path))
    assert (
        value(arguments, "--served-model-name") == "base"
        and "--enable-lora" not in arguments
    )


def test_what_could_not_be_joined_has_an_engine_of_its_own(tmp_path):
    store = run_directory(tmp_path, sft=16)
    for name in ("sft", "dpo"):
        (tmp_path / "checkpoints" / name / "merged").mkdir(parents=True)
    assert modes(recipe(), store) == {"base": "base", "sft": "joined", "dpo": "merged"}
    engines = engine_arguments(recipe(), store)
    assert list(engines) == ["base", "dpo"] and "--enable-lora" in engines["base"]
    assert value(engines["dpo"], "--model") == f"{tmp_path}/checkpoints/dpo/merged"
    assert (
        value(engines["dpo"], "--served-model-name") == "dpo"
        and "--enable-lora" not in engines["dpo"]
    )


def test_every_checkpoint_has_an_engine_of_its_own_where_the_recipe_says_merged(
    tmp_path,
):
    store = run_directory(tmp_path, sft=16)
    (tmp_path / "checkpoints/sft/merged").mkdir(parents=True)
    engines = engine_arguments(recipe(mode="merged"), store)
    assert list(engines) == ["base", "sft"] and "--enable-lora" not in engines["base"]


def test_a_run_directory_without_base_says_which_stage_to_run(tmp_path):
    with pytest.raises(BezoarError, match="Run the sft stage first"):
        base_arguments(recipe(), Store(tmp_path))


def test_engine_arguments_of_the_recipe_become_flags(tmp_path):
    given = {
        "max_model_len": 512,
        "enable_prefix_caching": False,
        "override_generation_config": {"a": 1},
    }
    arguments = base_arguments(recipe(engine=given), run_directory(tmp_path))
    assert value(arguments, "--max-model-len") == "512"
    assert "--no-enable-prefix-caching" in arguments
    assert value(arguments, "--override-generation-config") == '{"a": 1}'


def test_safetensors_alone_are_loaded_and_no_code(tmp_path):
    arguments = base_arguments(recipe(), run_directory(tmp_path))
    assert (
        value(arguments, "--load-format") == "safetensors"
        and "--trust-remote-code" not in arguments
    )


@pytest.fixture
def cuda_build(monkeypatch):
    """As where vLLM's CUDA build is installed."""
    monkeypatch.setattr(engine, "is_cpu_build", lambda: False)
    monkeypatch.setattr("bezoar_ray.serve.arguments.is_cpu_build", lambda: False)


def test_a_gpu_keeps_its_graphs(tmp_path, cuda_build):
    arguments = base_arguments(recipe(num_gpus=1), run_directory(tmp_path))
    assert (
        "--enforce-eager" not in arguments and "--worker-extension-cls" not in arguments
    )


@pytest.mark.parametrize("gpus", [0, 0.5, 1])
def test_the_cpu_build_is_told_the_same_on_gpus_that_are_only_numbers(tmp_path, gpus):
    arguments = base_arguments(recipe(num_gpus=gpus), run_directory(tmp_path))
    assert "--enforce-eager" in arguments and value(
        arguments, "--worker-extension-cls"
    ).endswith("GroupedLora")
    assert "--gpu-memory-utilization" not in arguments


@pytest.mark.parametrize(
    ("gpus", "given", "told"),
    [(0.5, None, "0.46"), (0.25, None, "0.23"), (0.5, 0.4, "0.4"), (1, None, None)],
)
def test_an_engine_on_a_share_of_a_gpu_takes_its_share_of_the_memory(
    tmp_path, cuda_build, gpus, given, told
):
    own = {"gpu_memory_utilization": given} if given else {}
    arguments = base_arguments(
        recipe(num_gpus=gpus, engine=own), run_directory(tmp_path)
    )
    flag = "--gpu-memory-utilization"
    assert (value(arguments, flag) if flag in arguments else None) == told
