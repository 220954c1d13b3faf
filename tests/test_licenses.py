"""What the commercial-use verdict says, and why."""

import json

import pytest

from bezoar_ray.licenses import causes, commercial_use, terms
from bezoar_ray.recipe import Recipe, load_recipe, parse_recipe


def made_of(
    teacher="Apache-2.0",
    judge="Apache-2.0",
    base="Apache-2.0",
    dolly="MIT",
    flan="MIT",
    hh="MIT",
) -> Recipe:
    tree = {
        "name": "r",
        "teacher": {"model": "t", "license": teacher},
        "judges": [{"model": "j", "license": judge}],
        "base": {"model": "b", "license": base},
        "seeds": {
            "dolly": [{"source": "d.jsonl", "license": dolly}],
            "flan": [{"source": "f.jsonl", "license": flan}],
            "hh_rlhf": [{"source": "h.jsonl", "license": hh}],
        },
    }
    return parse_recipe(tree, "test")


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("Apache-2.0", "yes"),
        ("apache 2.0", "yes"),
        ("MIT", "yes"),
        ("CC0-1.0", "yes"),
        ("Apache-2.0 (embedded)", "yes"),
        ("CC-BY-4.0", "with obligations"),
        ("CC BY-SA 3.0", "with obligations"),
        ("Llama-3.1-Community", "with obligations"),
        ("OpenAI-terms", "with obligations"),
        ("Anthropic terms", "with obligations"),
        ("Apache-2.0 and OpenRouter-terms", "with obligations"),
        ("CC-BY-NC-4.0", "no"),
        ("cc-by-nc-sa-4.0", "no"),
        ("CC-BY-ND-4.0", "no"),
        ("MIT and CC-BY-NC-4.0", "no"),
        ("unknown", "unknown"),
        ("", "unknown"),
        ("mitigated", "unknown"),
        ("MIT, in-house", "unknown"),
        ("MIT OR GPL-3.0-only", "yes"),
        ("MIT AND GPL-3.0-or-later", "with obligations"),
        ("GPL-2.0-only OR (MIT AND CC-BY-NC-4.0)", "with obligations"),
        ("Apache-2.0 WITH LLVM-exception", "yes"),
        ("Apache-2.0 with Commons-Clause", "unknown"),
        ("Apache-2.0 + Commons Clause", "unknown"),
        ("MIT-NC", "unknown"),
        ("MIT (non-commercial)", "unknown"),
        ("Apache-2.0-modified", "unknown"),
        ("BSD-3-Clause-No-Nuclear-License", "unknown"),
        ("CC-BY-NC-ND-4.0", "no"),
        ("PolyForm-Noncommercial-1.0.0", "no"),
        ("MIT AND", "unknown"),
        ("(MIT", "unknown"),
        ("Llama 3.1 Community License", "with obligations"),
    ],
)
def test_the_table_knows_the_usual_licences_and_guesses_none(name, verdict):
    assert terms(name).verdict == verdict


@pytest.mark.parametrize(
    "terms",
    [
        "OpenAI-terms and OpenRouter-terms",
        "OpenRouter-terms and OpenAI-terms",
        "CC-BY-4.0 and OpenAI-terms",
        "Llama-2, Apache-2.0",
    ],
)
def test_a_teacher_whose_output_may_not_be_trained_on_is_found_in_any_order(terms):
    assert commercial_use(made_of(teacher=terms))["verdict"] == "no"
    assert commercial_use(made_of(judge=terms))[
        "verdict"
    ] == "with obligations" or terms.startswith("Llama")


def test_permissive_parts_give_yes_and_name_each_part():
    found = commercial_use(made_of())
    assert found["verdict"] == "yes"
    assert [line.split(" (")[0] for line in found["because"]] == [
        "dolly seeds d.jsonl",
        "FLAN seeds f.jsonl",
        "HH-RLHF seeds h.jsonl",
        "teacher t",
        "base b",
        "judge j",
    ]


def test_the_worst_part_decides_and_stands_first():
    found = commercial_use(
        made_of(
            dolly="CC-BY-SA-3.0", base="CC-BY-NC-4.0", judge="OpenAI-terms", flan="?"
        )
    )
    assert found["verdict"] == "no"
    assert [line.split(" (")[0] for line in found["because"]] == [
        "base b",
        "FLAN seeds f.jsonl",
        "dolly seeds d.jsonl",
        "judge j",
    ]


def test_unknown_beats_obligations():
    assert (
        commercial_use(made_of(dolly="CC-BY-SA-3.0", flan="?"))["verdict"] == "unknown"
    )


def test_a_provider_may_judge_with_an_obligation_but_not_teach():
    judged, taught = (
        commercial_use(made_of(judge="OpenAI-terms")),
        commercial_use(made_of(teacher="OpenAI-terms")),
    )
    assert judged["verdict"] == "with obligations"
    assert "only rates" in judged["because"][0]
    assert taught["verdict"] == "no"
    assert "training data" in taught["because"][0]


def test_seeds_of_a_scheme_that_is_left_out_do_not_count():
    recipe = made_of(flan="CC-BY-NC-4.0")
    without = recipe.model_copy(
        update={"generate": recipe.generate.model_copy(update={"orca": None})}
    )
    assert commercial_use(recipe)["verdict"] == "no"
    assert commercial_use(without)["verdict"] == "yes"


def test_seeds_that_only_a_scheme_of_ones_own_uses_count():
    own = {"riddles": {"function": "mine.py:riddles", "seeds": "flan"}}
    tree = made_of(flan="CC-BY-NC-4.0").model_dump(mode="json")
    tree["generate"] |= {"orca": None, "own": own}
    assert commercial_use(parse_recipe(tree, "test"))["verdict"] == "no"
    tree["generate"]["own"]["riddles"]["seeds"] = "dolly"
    assert commercial_use(parse_recipe(tree, "test"))["verdict"] == "yes"


def test_the_licences_of_the_rows_themselves_count():
    found = commercial_use(
        made_of(), [("d.jsonl", "MIT"), ("bought.jsonl", "CC-BY-NC-4.0")]
    )
    assert found["verdict"] == "no" and found["because"][0].startswith(
        "rows from bought.jsonl (CC-BY-NC-4.0)"
    )
    assert commercial_use(made_of(), [("d.jsonl", "MIT")]) == commercial_use(made_of())


def test_rows_of_a_source_with_a_space_in_its_path_are_the_sources():
    tree = made_of().model_dump(mode="json")
    tree["seeds"]["dolly"][0]["source"] = "my data/d.jsonl"
    recipe = parse_recipe(tree, "test")
    rows = [("my data/d.jsonl", "MIT")]
    assert commercial_use(recipe, rows) == commercial_use(recipe)


def test_the_embedded_world_may_be_sold():
    assert commercial_use(load_recipe("tiny"))["verdict"] == "yes"


def test_the_reward_models_data_counts_only_with_a_reward_model():
    helpsteer = {"source": "train.jsonl.gz", "license": "CC-BY-4.0"}
    sets = [
        f"seeds.helpsteer=[{json.dumps(helpsteer)}]",
        "seeds.preferences=[{source: p.jsonl, license: CC-BY-NC-4.0}]",
    ]
    assert commercial_use(load_recipe("tiny", sets))["verdict"] == "yes"
    found = commercial_use(load_recipe("tiny", [*sets, "rm={}"]))
    assert found["verdict"] == "no"
    assert found["because"] == [
        "preferences p.jsonl (CC-BY-NC-4.0): for non-commercial use only",
        "rated answers train.jsonl.gz (CC-BY-4.0): name the authors, the license and "
        "your changes",
    ]


def test_without_a_scheme_neither_teacher_nor_judge_binds_the_result():
    recipe = load_recipe("drpo-tldr")
    assert not recipe.schemes
    parts = [cause.part for cause in causes(recipe)]
    assert not [part for part in parts if part.startswith(("teacher", "judge"))]
    assert any("pythia" in part for part in parts)
