"""The filter stage in real Ray actors, against a real HTTP endpoint whose verdicts are scripted."""

from collections import Counter
from dataclasses import replace

import orjson
import pytest

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.data.schema import Sample
from bezoar_ray.filter import stage
from bezoar_ray.filter.decontamination import Benchmarks
from bezoar_ray.filter.dedup import Duplicates
from bezoar_ray.recipe import load_recipe, parse_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.schemes import SCHEMES
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from tests.endpoint import serving
from tests.rows_on_disk import write_samples


def sample(id, response, scheme="lamini", **fields) -> Sample:
    return Sample(
        id=id,
        scheme=scheme,
        operation="x",
        instruction=f"Tell me of {id}.",
        response=response,
        **fields,
    )


ROWS = [
    sample("a", "A good thing.", finish_reason="stop"),
    sample("b", "A poor thing."),
    sample("c", "Nonsense."),
    sample("d", "A good thi", finish_reason="length"),
    sample("e", ""),
    sample("f", "", status="failed", reason="missing"),
    sample(
        "fa",
        "A good thing.",
        scheme="evol_instruct",
        status="rejected",
        reason="adds_nothing",
    ),
    replace(
        sample("fb", "Another good thing.", scheme="evol_instruct"),
        instruction="tell me of A",
    ),
    sample("fc", "A good one.", scheme="orca"),
    replace(
        sample("fd", "A good letter."),
        instruction="Please write a letter to a lighthouse keeper, who has not seen a ship in seven long years!",
    ),
]


def judge(messages):
    """Rates by a word; has no rating for nonsense."""
    row = messages[-1]["content"].partition("<response>")[2]
    if "Nonsense" in row:
        return "Well."
    return (
        '{"reason": "good", "rating": 5}'
        if "good" in row
        else '{"reason": "poor", "rating": 2}'
    )


def context(tmp_path, url, rows=ROWS, judges=("first",), **part) -> StageContext:
    store = Store(tmp_path)
    for scheme in SCHEMES:
        write_samples(
            store, scheme, "generated", [row for row in rows if row.scheme == scheme]
        )
    tree = load_recipe("tiny").model_dump(mode="json") | {"filter": part}
    tree["judges"] = [
        tree["judges"][0] | {"model": name, "base_url": url} for name in judges
    ]
    tree["seeds"]["dolly"] = []
    tree["evaluate"]["harness"] = None
    tree["evaluate"]["mt_bench"] = {"questions": str(_questions(tmp_path))}
    return StageContext(parse_recipe(tree, "test"), store, "s1", Progress())


def _questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    turns = [
        "Write a letter to a lighthouse keeper who has not seen a ship in seven long years.",
        "Shorten it.",
    ]
    path.write_bytes(
        orjson.dumps({"question_id": 1, "category": "writing", "turns": turns})
    )
    return path


def fates(tmp_path):
    found = {}
    for scheme in SCHEMES:
        for status in ("accepted", "rejected", "failed"):
            rows = read_samples(Store(tmp_path), scheme, status)
            assert all(row.status == status for row in rows)
            found |= {row.id: (status, row.gate) for row in rows}
    return found


def test_every_row_ends_with_its_gate_and_only_what_is_left_is_judged(
    ray_session, tmp_path
):
    with serving(judge) as server:
        outcome = stage.run(context(tmp_path, server.url, judges=("first", "second")))
    assert fates(tmp_path) == {
        "a": ("accepted", ""),
        "b": ("rejected", "judge"),
        "c": ("failed", "unrated"),
        "d": ("rejected", "truncated"),
        "e": ("rejected", "empty"),
        "f": ("failed", "missing"),
        "fa": ("rejected", "adds_nothing"),
        "fb": ("rejected", "duplicate"),
        "fc": ("accepted", ""),
        "fd": ("rejected", "contaminated"),
    }
    assert len(server.requests) == 2 * (
        5 + 2
    )  # a, b, fb, fc and fd once, c twice, by each judge
    assert outcome.summary["data"]["lamini"] == {
        "accepted": 1,
        "rejected": 4,
        "failed": 2,
        "reasons": {
            "judge": 1,
            "unrated": 1,
            "truncated": 1,
            "empty": 1,
            "missing": 1,
            "contaminated": 1,
        },
    }
    assert outcome.summary["decontaminated"] == ["mt_bench"]
    assert outcome.summary["judge"] == {
        "first": {"rated": 5, "unrated": 1},
        "second": {
            "rated": 5,
            "unrated": 1,
            "agreement": 1.0,
            "kappa": 1.0,
            "rating_kappa": 1.0,
        },
    }
    (row,) = read_samples(Store(tmp_path), "lamini", "accepted")
    assert [(v.judge, v.status, v.rating, v.reason) for v in row.verdicts] == [
        ("first", "accepted", 5.0, "good"),
        ("second", "accepted", 5.0, "good"),
    ]
    assert all((tmp_path / name).is_file() for name in outcome.files)


def test_without_a_judge_what_passes_the_gates_is_accepted(tmp_path):
    stage.run(context(tmp_path, None, judge=False))
    assert [
        id for id, (status, _) in fates(tmp_path).items() if status == "accepted"
    ] == ["a", "b", "c", "fc"]


def test_a_cap_keeps_so_many_rows_of_its_scheme(tmp_path):
    rows = [
        sample(f"a{n}", "A good thing.", scheme=scheme)
        for n in range(6)
        for scheme in ("lamini", "orca")
    ]
    rows = [
        replace(row, id=f"{place:04x}", instruction=f"Tell me of {row.id} in words.")
        for place, row in enumerate(rows)
    ]
    stage.run(context(tmp_path, None, rows=rows, judge=False, cap={"lamini": 2}))
    found = [
        read_samples(Store(tmp_path), "lamini", status)
        for status in ("accepted", "rejected")
    ]
    assert [len(some) for some in found] == [2, 4] and {
        row.reason for row in found[1]
    } >= {"capped"}


def test_gates_and_benchmarks_look_at_each_row_once(tmp_path, monkeypatch):
    """However many passes caps take; secrets and personal data are gates, too."""
    calls = Counter()

    def counting(name, function):
        def counted(*arguments):
            row = next(
                argument for argument in arguments if isinstance(argument, Sample)
            )
            calls[name, row.id] += 1
            return function(*arguments)

        return counted

    monkeypatch.setattr(stage, "find_gate", counting("find_gate", stage.find_gate))
    monkeypatch.setattr(Benchmarks, "find", counting("find", Benchmarks.find))
    monkeypatch.setattr(Duplicates, "add", counting("duplicates", Duplicates.add))
    caps = {"lamini": 2, "evol_instruct": 1, "orca": 1}
    stage.run(
        context(
            tmp_path, None, judge=False, cap=caps, gates=["secrets", "personal_data"]
        )
    )
    generated = {row.id for row in ROWS if row.status == "generated"}
    looked_up = generated - {"d", "e"}  # which a gate has taken
    assert calls == Counter(
        [("find_gate", id) for id in generated]
        + [("find", id) for id in looked_up]
        + [("duplicates", id) for id in looked_up - {"fd"}]
    )
    assert fates(tmp_path)["fd"] == ("rejected", "contaminated")


def test_where_nothing_is_accepted_the_gate_that_took_most_is_named(
    ray_session, tmp_path
):
    rows = [replace(row, response="Sorry, I cannot.") for row in ROWS[:3]] + ROWS[3:6]
    match = "the gate `refusal` took 3 of 6"
    with (
        serving(judge) as server,
        pytest.raises(stage.NothingAccepted, match=match) as raised,
    ):
        stage.run(context(tmp_path, server.url, rows=rows))
    assert not server.requests
    assert raised.value.exit_code == 3
    assert raised.value.outcome.summary["data"]["lamini"]["accepted"] == 0
    assert len(fates(tmp_path)) == 6


def test_where_nothing_was_generated_the_error_says_so(tmp_path):
    with pytest.raises(stage.NothingAccepted, match="no row was generated"):
        stage.run(context(tmp_path, None, rows=[]))
