import asyncio

import pytest

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.data.schema import Seed
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.generate import custom_scheme, stage
from bezoar_ray.generate.task import one_task_per_seed
from bezoar_ray.llm.chat import CallFailed, Reply
from bezoar_ray.recipe import CustomCode, load_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from tests.endpoint import serving
from tests.generate.test_stage import context

SOURCE = """
from dataclasses import dataclass

from bezoar_ray.generate.task import fill_answer


@dataclass
class Style:
    words: str


async def short(task, chat, settings):
    style = Style(settings["style"])
    for slot, seed in enumerate(task.seeds):
        messages = [{"role": "user", "content": f"{style.words} {seed.task}"}]
        sample = task.sample("short", slot=slot, instruction=seed.task + " Be brief.")
        reply = await chat(messages, step="answer")
        yield fill_answer(sample, messages, reply)


async def broken(task, chat, settings):
    yield settings["no such setting"]


async def careless(task, chat, settings):
    await chat([], step="x")
    yield


async def shorthanded(task):
    yield
"""
SEED = Seed(id="ab", source="own", license="CC0", instruction="Name a bird.")


def rows(function, chat=None, settings=None):
    (task,) = one_task_per_seed("short", 0, [SEED], 100)

    async def collect():
        code = CustomCode(SOURCE, f"x.py:{function}", settings or {})
        return [sample async for sample in custom_scheme.run(task, chat, code)]

    return asyncio.run(collect())


async def wren(messages, *, step):
    return Reply(f"A wren, said {messages[0]['content']}", "stop", 1, 1)


async def refused(messages, *, step):
    raise CallFailed("HTTP 400")


def test_a_function_of_the_users_makes_samples_with_their_provenance():
    (sample,) = rows("short", wren, {"style": "In short:"})
    assert (
        sample.scheme == "short"
        and sample.operation == "short"
        and sample.seed_licenses == ["CC0"]
    )
    assert (sample.instruction, sample.response) == (
        "Name a bird. Be brief.",
        "A wren, said In short: Name a bird.",
    )


def test_a_fault_in_it_names_scheme_and_function():
    with pytest.raises(
        BezoarError,
        match="generate.own.short: x.py:broken: KeyError: 'no such setting'",
    ):
        rows("broken")
    with pytest.raises(RecipeError, match="'x.py' does not define 'absent'"):
        rows("absent")
    with pytest.raises(BezoarError, match="generate.own.short: .*TypeError.* 3 were"):
        rows("shorthanded")


def test_a_file_that_fails_to_run_is_named_with_its_error():
    """An AttributeError in the file is not taken for a missing function."""
    with pytest.raises(
        RecipeError, match="'x.py' fails to run: AttributeError: .*'sepp'"
    ):
        custom_scheme.load("import os\nSEPARATOR = os.sepp", "x.py:f")
    with pytest.raises(RecipeError, match="'x.py' fails to run: SyntaxError"):
        custom_scheme.load("async def f(:", "x.py:f")


def test_a_call_that_fails_and_that_it_does_not_catch_is_a_failed_row():
    (sample,) = rows("careless", refused)
    assert (sample.status, sample.reason) == ("failed", "call: HTTP 400")


def test_it_runs_in_the_actors_and_goes_through_generate_like_any_other(
    ray_session, tmp_path
):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    own_part = {
        "short": {
            "function": f"{file}:short",
            "works": 3,
            "settings": {"style": "Briefly:"},
        }
    }
    with serving(lambda messages: "A wren.") as server:
        given = context(
            tmp_path,
            server.url,
            lamini=None,
            evol_instruct=None,
            orca=None,
            own=own_part,
        )
        outcome = stage.run(StageContext(given.recipe, given.store, "s1", Progress()))
    assert outcome.summary["data"] == {
        "short": {"seeds": 3, "seeds_failed": 1, "generated": 3}
    }
    assert {
        row.response for row in read_samples(given.store, "short", "generated")
    } == {"A wren."}


def test_a_name_or_function_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(
        RecipeError, match="generate.own.lamini: the name of another scheme"
    ):
        load_recipe("tiny", ["generate.own={lamini: {function: x.py:f}}"])
    with pytest.raises(RecipeError, match=r"expected path.py:function"):
        load_recipe("tiny", ["generate.own={mine: {function: x.txt}}"])
    with pytest.raises(RecipeError, match="sft.order: no scheme 'other'"):
        load_recipe("tiny", ["sft.order=[lamini, other]"])


def test_changed_code_is_another_generate_stage(tmp_path):
    from bezoar_ray.runs.manifest import fingerprint

    file = tmp_path / "mine.py"
    marks = set()
    for text in (SOURCE, SOURCE + "# changed"):
        file.write_text(text)
        marks.add(
            fingerprint(
                load_recipe(
                    "tiny", [f"generate.own={{short: {{function: '{file}:short'}}}}"]
                ),
                "generate",
            )
        )
    assert len(marks) == 2
