"""The packaged recipes hold what is published, and only names that exist."""

import re
from importlib import resources

import pytest
from jinja2 import Environment

from bezoar_ray.generate.prompts import concise_answer_prompt
from bezoar_ray.licenses import commercial_use
from bezoar_ray.plan import plan
from bezoar_ray.recipe import Ppo, load_recipe, recipe_names
from bezoar_ray.runtime.gpus import GPUS
from bezoar_ray.schemes import SCHEMES

BIG = (
    "openbezoar-3b",
    "modern",
    "helpsteer2",
    "helpsteer2-steer",
    "one-gpu",
    "api-teacher",
)


def asked(name: str) -> str:
    """What the teacher of a recipe reads, for a system and a user message."""
    template = load_recipe(name).teachers[0].chat_template
    return (
        Environment()
        .from_string(template)
        .render(messages=concise_answer_prompt("Why?"), add_generation_prompt=True)
    )


def test_they_are_packaged():
    assert recipe_names() == [
        "api-teacher",
        "drpo-tldr",
        "helpsteer2",
        "helpsteer2-steer",
        "modern",
        "one-gpu",
        "openbezoar-3b",
        "smol",
        "tiny",
        "tiny-drpo",
        "tiny-ppo",
        "tiny-rm",
        "tiny-steer",
    ]


@pytest.mark.parametrize("card", ["L4", "A10G", "RTX4090", "RTX3090"])
@pytest.mark.parametrize("name", ["one-gpu", "api-teacher"])
def test_the_recipes_for_one_gpu_fit_on_24_gb(name, card):
    found = plan(load_recipe(name), gpu=GPUS[card])
    assert found.needs and all(need.fits and need.known for need in found.needs)
    assert all(
        part.workers == part.gpus_per_worker == 1
        for part in map(load_recipe(name).training, ("sft", "align"))
    )


def test_the_terms_of_a_teachers_endpoint_enter_the_verdict():
    found = commercial_use(load_recipe("api-teacher"))
    assert found["verdict"] == "with obligations"
    assert any(
        "OpenRouter-terms" in line and line.startswith("teacher")
        for line in found["because"]
    )
    for terms, verdict in (("OpenAI-terms", "no"), ("Some-host-terms", "unknown")):
        recipe = load_recipe("api-teacher", [f"teacher.license=Apache-2.0 and {terms}"])
        assert commercial_use(recipe)["verdict"] == verdict


def test_openbezoar_holds_the_published_values():
    recipe = load_recipe("openbezoar-3b")
    assert recipe.teachers[0].model == "h2oai/h2ogpt-gm-oasst1-en-2048-falcon-40b-v2"
    assert recipe.teachers[0].engine["max_model_len"] == 2048
    assert recipe.base.model == "openlm-research/open_llama_3b_v2"
    assert recipe.sft.order == ("lamini", "orca", "evol_instruct")
    for lora in (recipe.sft.lora, recipe.hh_sft.lora):
        assert (lora.r, lora.alpha, lora.dropout) == (16, 16, 0.05)
        assert lora.targets == ("q_proj", "k_proj", "v_proj")
    assert (
        recipe.generate.evol_instruct.seeds * recipe.generate.evol_instruct.epochs
        == 2304
    )
    assert (
        sum(mixture.rows for mixture in recipe.generate.orca.mixtures.values()) == 5507
    )
    assert recipe.generate.lamini.calls * recipe.generate.lamini.per_call >= 1505
    assert recipe.hh_sft.limit == recipe.align.limit == 100_000
    assert recipe.hh_sft.epochs == recipe.align.epochs == 1


def test_the_papers_adapter_has_the_published_number_of_weights():
    lora, hidden, layers = load_recipe("openbezoar-3b").sft.lora, 3200, 26
    assert layers * len(lora.targets) * lora.r * (hidden + hidden) == 7_987_200


def test_the_papers_teacher_is_asked_in_its_own_wrapper():
    assert asked("openbezoar-3b") == (
        "<|prompt|>You are a helpful assistant. Answer helpfully but concisely.\n\nWhy?<|endoftext|><|answer|>"
    )


def test_the_modern_teacher_answers_without_thinking():
    assert asked("modern").endswith(
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_drpo_tldr_holds_the_published_values():
    recipe = load_recipe("drpo-tldr")
    align = recipe.align
    assert align.ppo.model_dump() == Ppo().model_dump()  # its defaults are the paper's
    assert (align.learning_rate, align.beta, align.schedule) == (3e-6, 0.05, "linear")
    assert align.batch == 512
    rows = recipe.seeds.hh_rlhf[0].limit - recipe.evaluate.heldout_pairs
    episodes = rows * align.epochs
    assert episodes // align.batch == pytest.approx(1953, abs=10)
    for section in (recipe.sft, recipe.hh_sft, recipe.rm):
        lora = section.lora
        assert (lora.r, lora.alpha, lora.dropout) == (1024, 2048, 0.0)
        assert (section.learning_rate, section.batch, section.epochs) == (3e-6, 64, 1)
    assert plan(recipe, gpu=GPUS["A100"]).steps
    # All of its data are published.
    assert recipe.stages == ("sft", "hh-sft", "rm", "align", "evaluate", "report")


def test_helpsteer2_steer_holds_the_published_values():
    steer = load_recipe("helpsteer2-steer").align.steer
    assert (steer.prompts, steer.samples, steer.iterations) == (20_000, 10, 2)
    assert (steer.temperature, steer.top_p) == (0.7, 0.9)
    assert (steer.epochs, steer.batch) == (2, 128)
    assert list(steer.goals[0].values()) == [4, 4, 4, 2, 2]


@pytest.mark.parametrize("name", BIG)
def test_big_recipes_can_be_built_and_paid_for(name):
    recipe = load_recipe(name)
    assert all(getattr(recipe.generate, scheme) for scheme in SCHEMES)
    assert all(
        part.revision and part.source.startswith("hub:")
        for part in (*recipe.seeds.dolly, *recipe.seeds.flan)
    )
    for judge in (*recipe.judges, *recipe.mt_bench_judges):
        assert judge.base_url and judge.api_key_env and judge.prices.output > 0
    for part in (recipe.sft, recipe.hh_sft, recipe.align):
        assert part.gpus_per_worker == 1
        assert (
            part.micro_batch is None and part.micro_tokens is None
        )  # as large as they fit
    held_out = recipe.evaluate.heldout_pairs
    assert (
        sum(part.limit for part in recipe.seeds.hh_rlhf)
        == recipe.hh_sft.limit + held_out
    )


@pytest.mark.parametrize("name", BIG)
def test_revisions_are_whole_commits_or_say_that_they_are_no_pin(name):
    text = (resources.files("bezoar_ray") / "recipes" / f"{name}.yaml").read_text()
    revisions = re.findall(r"revision: (\w+)", text)
    assert revisions
    assert all(re.fullmatch(r"[0-9a-f]{40}|main", revision) for revision in revisions)
    assert "`main` is not a pin" in text


@pytest.mark.parametrize("name", BIG)
def test_only_dollys_share_alike_and_terms_of_endpoints_bind_the_result(name):
    found = commercial_use(load_recipe(name))
    assert found["verdict"] == "with obligations"
    for line in found["because"]:
        # HelpSteer2 asks for the names of its authors.
        is_expected = line.startswith("dolly") or "-terms)" in line
        assert is_expected or "(CC-BY-4.0)" in line


def test_harness_tasks_are_lm_evals_own():
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    asked = {
        task.task
        for name in BIG
        if load_recipe(name).evaluate.harness
        for task in load_recipe(name).evaluate.harness.all_tasks
    }
    assert len(asked) > 15 and asked <= known
