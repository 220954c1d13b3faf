"""What the generate stage asks of a scheme, whether `schemes.py` or the recipe names it."""

import importlib
import inspect

import pytest

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.data.schema import Seed
from bezoar_ray.generate import stage
from bezoar_ray.recipe import load_recipe
from bezoar_ray.schemes import SCHEMES, Scheme
from tests.endpoint import serving
from tests.generate import echo_scheme
from tests.generate.test_stage import context

CUSTOM = f"generate.own={{echo: {{function: {echo_scheme.__file__}:run}}}}"


def seeds(count):
    """Seeds that all schemes can start from."""
    return [
        Seed(
            id=f"{number:016x}",
            source="own",
            license="CC0",
            instruction=f"Name {number} birds.",
            task_source="CoT",
            task_name="birds",
            template_type="zs_noopt",
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("name", [*SCHEMES, "echo"])
def test_every_scheme_of_a_recipe_is_the_same_kind_of_object(name):
    recipe = load_recipe("tiny", [CUSTOM])
    scheme = recipe.scheme(name)
    assert isinstance(scheme, Scheme) and scheme.name == name
    module = importlib.import_module(scheme.module)
    section = recipe.generate.section(name)
    tasks = list(module.plan(name, section, recipe.seed, seeds(20)))
    assert {task.scheme for task in tasks} == {name}
    assert len(tasks) == len({task.id for task in tasks})
    assert inspect.isasyncgen(module.run(tasks[0], None, section.for_actors()))
    planned = stage.plan(recipe, {"dolly": seeds(20), "flan": seeds(20)})
    assert [task for task in planned if task.scheme == name] == tasks


def test_a_registered_scheme_and_a_custom_one_give_the_same_rows(
    ray_session, tmp_path, monkeypatch
):
    registered = Scheme(
        name="evol_instruct",
        seeds="dolly",
        module=echo_scheme.__name__,
        pilot_field="seeds",
        accepted=0.5,
        calls=(),
    )
    monkeypatch.setitem(SCHEMES, "evol_instruct", registered)
    with serving(lambda messages: messages[-1]["content"]) as server:
        given = context(
            tmp_path,
            server.url,
            lamini=None,
            orca=None,
            evol_instruct={"seeds": 9},
            own={"echo": {"function": f"{echo_scheme.__file__}:run", "works": 9}},
        )
        counts = stage.run(given).summary["data"]

    def rows(scheme):
        samples = read_samples(given.store, scheme, "generated")
        rows = [
            sample.to_row() | {"id": "", "scheme": ""}
            for sample in sorted(samples, key=lambda sample: sample.seed_ids)
        ]
        assert len(rows) == 9
        return rows

    assert rows("evol_instruct") == rows("echo")
    assert counts["evol_instruct"] == counts["echo"]
