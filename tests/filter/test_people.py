"""People override gates and judges; rows keep what was generated, and say who changed it."""

from dataclasses import replace

import pytest

from bezoar_ray.data.decision import Decision, encode_decision, now
from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.data.schema import Sample, Verdict
from bezoar_ray.errors import RecipeError
from bezoar_ray.filter import stage
from bezoar_ray.recipe import OWN_DECISIONS, load_recipe
from bezoar_ray.review.decisions import DecisionLog
from bezoar_ray.runs.doctor import missing_files
from bezoar_ray.runs.manifest import fingerprint
from bezoar_ray.stages import STAGES, StageContext
from bezoar_ray.store import Store
from tests.filter.test_stage import context as filter_context
from tests.filter.test_stage import fates, sample


def judged(id: str, status: str, **fields) -> Sample:
    rating = 5.0 if status == "accepted" else 2.0
    verdict = Verdict("first", status, rating, "because")
    return sample(id, "A thing.", verdicts=[verdict], **fields)


ROWS = [
    judged("a", "accepted"),
    judged("b", "rejected"),
    sample("c", "Sorry, I cannot."),
    sample("d", "", status="failed", reason="call: refused"),
    replace(
        judged("e", "rejected"), scheme="evol_instruct", instruction="tell me of A"
    ),
    sample("f", "Well.", status="rejected", reason="adds_nothing"),
    judged("0", "accepted"),
]


def decide(id: str, decision="accept", **fields) -> Decision:
    return Decision(id, "lamini", decision, "ada", now(), **fields)


def run(tmp_path, *decisions: Decision, **part) -> dict[str, tuple[str, str]]:
    """The fate of each row under decisions of the run directory itself."""
    log = DecisionLog(Store(tmp_path))
    log.append(*decisions)
    stage.run(context(tmp_path, decisions=OWN_DECISIONS, **part))
    return fates(tmp_path)


def context(tmp_path, **part) -> StageContext:
    # The rows have their verdicts.
    return filter_context(tmp_path, None, rows=ROWS, judge=False, **part)


def test_a_persons_word_overrides_judge_gate_and_scheme(tmp_path):
    found = run(
        tmp_path,
        decide("a", "reject", reason="not true"),
        decide("b"),
        decide("c"),
        decide("f"),
    )
    assert found == {
        "0": ("accepted", ""),
        "a": ("rejected", "person"),
        "b": ("accepted", ""),
        "c": ("accepted", ""),
        "d": ("failed", "call"),
        "e": ("rejected", "judge"),
        "f": ("accepted", ""),
    }
    rejected = read_samples(Store(tmp_path), "lamini", "rejected")
    reasons = {row.id: (row.reason, row.person) for row in rejected}
    assert reasons["a"] == ("person: not true", "rejected")
    assert set(reasons) == {"a"}
    accepted = read_samples(Store(tmp_path), "lamini", "accepted")
    people = {row.id: row.person for row in accepted}
    assert people == {"0": "", "b": "accepted", "c": "accepted", "f": "accepted"}


def test_without_the_field_decisions_change_nothing(tmp_path):
    DecisionLog(Store(tmp_path)).append(decide("a", "reject"))
    stage.run(context(tmp_path))
    assert fates(tmp_path)["a"] == ("accepted", "")


def test_a_persons_text_takes_the_place_of_the_generated_one(tmp_path):
    run(tmp_path, decide("b", instruction="Say it.", response="It is done."))
    store = Store(tmp_path)
    rows = {row.id: row for row in read_samples(store, "lamini", "accepted")}
    edited = rows["b"]
    assert (edited.instruction, edited.response) == ("Say it.", "It is done.")
    assert edited.person == "edited"
    # The verdict stays what it was: of the generated text, which is kept, too.
    assert edited.verdicts == ROWS[1].verdicts
    generated = {row.id: row for row in read_samples(store, "lamini", "generated")}
    assert generated["b"].response == "A thing." and generated["b"].person == ""


def test_of_rows_that_ask_the_same_the_one_stays_that_a_person_accepted(tmp_path):
    found = run(tmp_path, decide("e"))
    assert found["e"] == ("accepted", "") and found["a"] == ("rejected", "not_best")


def test_accepted_rows_may_still_be_duplicates(tmp_path):
    """A person looks at one row, and duplicates are about the set of rows."""
    found = run(tmp_path, decide("a"), decide("e"))
    assert found["a"] == ("accepted", "") and found["e"] == ("rejected", "duplicate")


def test_a_cap_keeps_what_a_person_accepted(tmp_path):
    found = run(tmp_path, decide("b"), cap={"lamini": 1})
    accepted = [id for id, (status, _) in found.items() if status == "accepted"]
    assert accepted == ["b"]


def test_nobody_can_accept_a_row_that_has_no_response(tmp_path):
    assert run(tmp_path, decide("d"))["d"] == ("failed", "call")


def test_undone_and_skipped_decisions_decide_nothing(tmp_path):
    found = run(
        tmp_path, decide("a", "reject"), decide("a", "undo"), decide("b", "skip")
    )
    assert found["a"] == ("accepted", "") and found["b"] == ("rejected", "judge")


def test_decisions_of_another_run_come_from_a_file(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(encode_decision(decide("a", "reject")))
    stage.run(context(tmp_path / "run", decisions=str(file)))
    assert fates(tmp_path / "run")["a"] == ("rejected", "person")


def test_a_missing_or_malformed_file_is_named_before_the_run_and_in_it(tmp_path):
    absent = str(tmp_path / "none.jsonl")
    recipe = load_recipe("tiny", [f"filter.decisions={absent}"])
    message = f"filter.decisions: no file {absent!r}"
    assert ("filter", message) in list(missing_files(recipe))
    own = load_recipe("tiny", ["filter.decisions=review"])
    assert not [stage for stage, _ in missing_files(own) if stage == "filter"]
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(encode_decision(decide("a", response=" ")))
    with pytest.raises(RecipeError, match="bad.jsonl:1: .*response is empty"):
        stage.run(context(tmp_path / "run", decisions=str(bad)))


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in STAGES if before[name] != after[name]]


FILTER_AND_LATER = [name for name in STAGES if name not in ("generate", "rm")]


def test_a_decision_redoes_the_filter_and_what_follows_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    log = DecisionLog(store)
    recipe = load_recipe("tiny", ["filter.decisions=review"])

    def fingerprints(recipe=recipe) -> dict[str, str]:
        return {name: fingerprint(recipe, name, store) for name in recipe.stages} | {
            "rm": ""
        }

    without = fingerprints(load_recipe("tiny"))
    before = fingerprints()
    assert changed(without, before) == FILTER_AND_LATER
    log.append(decide("a"))
    after = fingerprints()
    assert changed(before, after) == FILTER_AND_LATER
    # A second look with the same result, and a skip, redo nothing.
    log.append(decide("a"), decide("b", "skip"))
    assert fingerprints() == after
    log.append(decide("a", response="Better."))
    assert changed(after, fingerprints()) == FILTER_AND_LATER
    # A recipe that does not read them is left alone.
    assert fingerprints(load_recipe("tiny")) == without


def test_a_file_of_decisions_counts_by_its_content(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(encode_decision(decide("a")))
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(file.read_bytes())
    recipes = [load_recipe("tiny", [f"filter.decisions={f}"]) for f in (file, moved)]
    first, second = (fingerprint(recipe, "filter") for recipe in recipes)
    assert first == second
    file.write_bytes(encode_decision(decide("a", "reject")))
    assert fingerprint(recipes[0], "filter") != first
