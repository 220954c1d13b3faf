import pytest

from bezoar_ray.data.schema import Sample
from bezoar_ray.errors import RecipeError
from bezoar_ray.filter.decontamination import Benchmarks, finish_reading, start_reading
from bezoar_ray.recipe import load_recipe

LONG = "Compose an engaging travel blog post about a recent trip to Hawaii, highlighting cultural experiences."


def row(instruction, response="Well.") -> Sample:
    return Sample(
        id="1",
        scheme="lamini",
        operation="x",
        instruction=instruction,
        response=response,
    )


def test_thirteen_words_in_a_row_tell_whatever_their_case_and_signs_in_instruction_or_response():
    benchmarks = Benchmarks([("mt_bench", LONG)])
    assert (
        benchmarks.find(
            row(
                "compose AN engaging travel blog post - about a recent trip to hawaii - highlighting"
            )
        )
        == "mt_bench"
    )
    assert benchmarks.find(row("Say it.", LONG)) == "mt_bench"
    assert (
        benchmarks.find(
            row("Compose an engaging travel blog post about a recent trip to Norway.")
        )
        is None
    )


def test_a_short_item_has_to_stand_there_whole_and_a_very_short_one_tells_nothing():
    benchmarks = Benchmarks(
        [("quiz", "What is the capital of France?"), ("quiz", "What is 2 + 2?")]
    )
    assert (
        benchmarks.find(row("Tell me: what is the capital of France, and why?"))
        == "quiz"
    )
    assert benchmarks.find(row("What is the capital of Spain?")) is None
    assert benchmarks.find(row("What is 2 + 2?")) is None


def test_the_form_of_a_task_is_not_its_content():
    form = "Read the text below with care, then give the one answer that is right, and nothing else: "
    benchmarks = Benchmarks([("reading", f"{form} number {n}") for n in range(20)])
    assert benchmarks.find(row(f"{form} what colour is the sky over the sea?")) is None


@pytest.mark.slow
def test_the_recipes_tasks_and_questions_are_read_in_ray(ray_session, tiny_world):
    benchmarks = finish_reading(start_reading(load_recipe("tiny")))
    assert benchmarks.names == ["mt_bench", "tiny_choice", "tiny_answer", "tiny_askers"]
    with pytest.raises(
        RecipeError, match="cannot load 'no_such_task'.*filter.decontaminate=false"
    ):
        finish_reading(
            start_reading(
                load_recipe("tiny", ["evaluate.harness.tasks=[{task: no_such_task}]"])
            )
        )


def test_it_can_be_left_out():
    assert (
        finish_reading(
            start_reading(load_recipe("tiny", ["filter.decontaminate=false"]))
        )
        is None
    )
