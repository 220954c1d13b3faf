"""The generate stage in real Ray actors, against a real HTTP endpoint whose answers are scripted."""

import itertools
import re
from collections import Counter

import orjson
import pytest

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.errors import RecipeError
from bezoar_ray.generate import stage
from bezoar_ray.recipe import load_recipe, parse_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from tests.endpoint import serving

DOLLY = [
    {
        "instruction": f"Name {n} birds.",
        "context": "",
        "response": "Some.",
        "category": "",
    }
    for n in range(9)
]
FLAN = {
    "targets": "yes",
    "task_source": "CoT",
    "task_name": "t",
    "template_type": "zs_noopt",
}


def teacher():
    """A teacher that always has something new to say."""
    numbers = itertools.count()

    def answer(messages):
        text = messages[-1]["content"]
        if "<example>" in text:
            return "".join(
                f"<example>Count to {next(numbers)}.</example>" for _ in range(2)
            )
        if "Not equal" in text:
            return "Not equal"
        return (
            f"Count up to {next(numbers)}."
            if "#Given Prompt#" in text
            else ("12 and", "length")
        )

    return answer


def jsonl(path, rows):
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return {"source": str(path), "license": "CC0"}


def context(tmp_path, url, session="s1", **generate) -> StageContext:
    part = {
        "lamini": {"calls": 3, "per_call": 3},
        "evol_instruct": {"seeds": 4, "epochs": 2},
        "orca": {},
    } | generate
    flan = [FLAN | {"inputs": f"Is {n} odd?"} for n in range(5)] + [
        FLAN | {"inputs": "x", "targets": ""}
    ]
    tree = load_recipe("tiny").model_dump(mode="json") | {"generate": part}
    tree["teachers"][0] |= {"model": "scripted", "license": "MIT", "base_url": url}
    tree["seeds"]["dolly"] = [
        jsonl(tmp_path / "dolly.jsonl", [*DOLLY, {"instruction": ""}])
    ]
    tree["seeds"]["flan"] = [jsonl(tmp_path / "flan.jsonl", flan)]
    return StageContext(
        parse_recipe(tree, "test"), Store(tmp_path / "run"), session, Progress()
    )


def test_one_pass_makes_the_rows_of_all_schemes_and_a_rerun_pays_for_nothing(
    ray_session, tmp_path
):
    with serving(teacher()) as server:
        outcome = stage.run(context(tmp_path, server.url))
        first = {
            scheme: read_samples(Store(tmp_path / "run"), scheme, "generated")
            for scheme in outcome.summary["data"]
        }
        paid = len(server.requests)
        assert stage.run(context(tmp_path, server.url, session="s2")) == outcome
        assert len(server.requests) == paid == 3 + 6 + 4 * 2 * 3 + 5

    counts = outcome.summary["data"]
    assert {scheme: c["generated"] for scheme, c in counts.items()} == {
        "lamini": 9,
        "evol_instruct": 8,
        "orca": 5,
    }
    assert {scheme: c["seeds_failed"] for scheme, c in counts.items()} == {
        "lamini": 1,
        "evol_instruct": 1,
        "orca": 1,
    }
    assert counts["evol_instruct"]["seeds"] == 4 and counts["orca"]["seeds"] == 5
    assert outcome.files == [
        f"data/{scheme}/generated/part-00000.parquet" for scheme in counts
    ]
    for scheme, samples in first.items():
        assert samples == read_samples(Store(tmp_path / "run"), scheme, "generated")
        assert [s.id for s in samples] == sorted({s.id for s in samples})
        assert {(s.teacher, s.teacher_license) for s in samples} == {
            ("scripted", "MIT")
        }
        assert {license for s in samples for license in s.seed_licenses} == {"CC0"}
    assert [s.reason for s in first["lamini"]].count("missing") == 3
    assert {s.finish_reason for s in first["orca"]} == {"length"}


def test_several_teachers_share_the_works_by_weight_and_each_row_names_its_own(
    ray_session, tmp_path
):
    with serving(teacher()) as server:
        asked = context(
            tmp_path,
            server.url,
            lamini=None,
            evol_instruct={"seeds": 9, "epochs": 1},
            orca=None,
        )
        tree = asked.recipe.model_dump(mode="json")
        first = tree["teachers"][0]
        tree["teachers"] = [
            first | {"weight": 2},
            first | {"model": "other", "license": "Apache-2.0"},
        ]
        recipe = parse_recipe(tree, "test")
        stage.run(StageContext(recipe, asked.store, "s1", Progress()))
        rows = read_samples(asked.store, "evol_instruct", "generated")
    counts = Counter((row.teacher, row.teacher_license) for row in rows)
    assert counts.total() == 9 and set(counts) == {
        ("scripted", "MIT"),
        ("other", "Apache-2.0"),
    }
    assert counts["scripted", "MIT"] > counts["other", "Apache-2.0"]


def test_each_instruction_gets_as_many_answers_as_candidates_and_a_rerun_pays_for_none(
    ray_session, tmp_path
):
    with serving(teacher()) as server:
        asked = {
            "lamini": None,
            "evol_instruct": {"seeds": 4, "epochs": 1},
            "orca": {"rows": 3},
            "candidates": 3,
        }
        given = context(tmp_path, server.url, **asked)
        stage.run(given)
        paid = len(server.requests)
        assert paid == 4 * (2 + 3) + 3 * 3
        rows = [
            row
            for scheme in ("evol_instruct", "orca")
            for row in read_samples(given.store, scheme, "generated")
        ]
        stage.run(context(tmp_path, server.url, session="s2", **asked))
        assert len(server.requests) == paid
    assert len({row.id for row in rows}) == len(rows) == 3 * (4 + 3)
    assert set(Counter(row.instruction for row in rows).values()) == {3}


def test_malformed_seeds_are_said_once_and_listed_in_the_logs(
    ray_session, tmp_path, capsys
):
    with serving(teacher()) as server:
        stage.run(context(tmp_path, server.url, lamini=None, orca={"rows": 1}))
    log = (tmp_path / "run/logs/seeds-failed.txt").read_text().splitlines()
    assert [re.sub(r".*/", "", line) for line in log] == [
        "dolly.jsonl:10: empty `instruction`",
        "flan.jsonl:6: empty `targets`",
    ]
    assert "2 malformed seed rows are left out" in capsys.readouterr().out


def test_a_scheme_without_seeds_is_named_before_any_call(tmp_path):
    recipe = context(tmp_path, None, lamini=None, evol_instruct=None).recipe
    with pytest.raises(
        RecipeError,
        match=r"generate\.orca starts from seeds\.flan, which holds no usable row",
    ):
        list(stage.plan(recipe, {"flan": []}))
