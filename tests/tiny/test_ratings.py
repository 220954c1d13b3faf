"""The embedded ratings: what the rater says of answers, and what the files hold."""

import ast
import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bezoar_ray import sources, tiny
from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.recipe import RatingSource, SourceSection
from bezoar_ray.runtime import embedded_world
from bezoar_ray.tiny import facts, manners, rater, ratings, tasks

SEEDS = st.integers(0, 10**6)
PUBLISHED_WEIGHTS = (0.65, 0.8, 0.45, 0.55, -0.4)
"""Of the attributes in the score of HelpSteer2's 70B model (arXiv 2406.08673)."""
SECTIONS = {
    "Chat": (
        "alpacaeval-easy",
        "alpacaeval-length",
        "alpacaeval-hard",
        "mt-bench-easy",
        "mt-bench-med",
    ),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": (
        "math-prm",
        "hep-cpp",
        "hep-go",
        "hep-java",
        "hep-js",
        "hep-python",
        "hep-rust",
    ),
}
"""RewardBench's sections, with the names of their subsets."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ratings")
    ratings.write(folder)
    return folder


def rows(folder: Path, name: str) -> list[dict]:
    lines = (folder / name).read_text().splitlines()
    return [json.loads(line) for line in lines]


def last_turn(prompt: str) -> str:
    return prompt.rpartition("<extra_id_1>User\n")[2]


def without_greeting(text: str) -> str:
    return re.sub(rf"\A{manners.GREETING}", "", text)


def draw(seed: int, is_polite: bool = False, **wanted) -> ratings.WorldQuestion:
    return ratings.Questions().draw(Random(seed), is_polite=is_polite, **wanted)


def score(prompt: str, response: str) -> float:
    rated = rater.rate(last_turn(prompt), response)
    weighted = zip(PUBLISHED_WEIGHTS, ATTRIBUTES, strict=True)
    return sum(weight * rated[name] for weight, name in weighted)


# The rater.


@given(SEEDS)
def test_manners_are_noticed_in_whatever_words_they_come(seed):
    rng = Random(seed)
    question = draw(seed, is_polite=True)
    plain = question.request.answer()
    kind = f"{manners.opening(rng)} {plain} {manners.closing(rng)}"
    rude = f"{plain} {manners.rude(rng)}"
    rates = [rater.rate(question.text, text) for text in (kind, plain, rude)]
    helpfulness = [rated["helpfulness"] for rated in rates]
    assert helpfulness == sorted(helpfulness, reverse=True)
    assert helpfulness[0] >= helpfulness[1] + 2
    assert {rated["correctness"] for rated in rates[:2]} == {4}


@given(SEEDS)
def test_who_does_not_greet_wants_a_plain_answer(seed):
    rng = Random(seed)
    question = draw(seed)
    plain = question.request.answer()
    kind = f"{manners.opening(rng)} {plain} {manners.closing(rng)}"
    assert rater.rate(question.text, plain)["helpfulness"] == 4
    assert rater.rate(question.text, kind)["helpfulness"] == 3


@given(SEEDS, st.booleans())
def test_a_wrong_answer_is_less_correct_and_helps_less(seed, is_polite):
    question = draw(seed, is_polite)
    request = question.request
    wrong = request.answer(ratings.wrong_values(Random(seed), request))
    right_rates = rater.rate(question.text, request.answer())
    wrong_rates = rater.rate(question.text, wrong)
    assert right_rates["correctness"] == 4
    assert wrong_rates["correctness"] <= 2
    assert wrong_rates["helpfulness"] < right_rates["helpfulness"]


@given(SEEDS)
def test_half_an_answer_is_half_right(seed):
    question = draw(seed, tasks_asked=2)
    first, second = question.request.tasks
    half = rater.rate(question.text, first.statement())["correctness"]
    if first.kind == second.kind:
        return
    assert half == 2


@given(SEEDS)
def test_a_longer_answer_is_more_verbose_and_explains_more(seed):
    question = draw(seed, kinds=tuple(facts.RELATIONS), tasks_asked=1)
    task = question.request.tasks[0]
    others = [name for name in facts.RELATIONS if name != task.kind]
    bare = task.value
    statement = task.statement()
    further = f"{statement} {tasks.about_animal(task.args[0], others[:2])}"
    explained = f"{further} So the answer is {task.value}."
    rates = [
        rater.rate(question.text, text)
        for text in (bare, statement, further, explained)
    ]
    assert [rated["complexity"] for rated in rates] == [0, 1, 3, 4]
    verbosity = [rated["verbosity"] for rated in rates]
    assert verbosity == sorted(verbosity)
    assert verbosity[0] == 0 < verbosity[1] < verbosity[3]


@given(SEEDS)
def test_cut_and_repeated_answers_are_less_coherent(seed):
    question = draw(seed)
    text = question.request.tasks[0].statement()
    assert rater.rate(question.text, text)["coherence"] == 4
    assert rater.rate(question.text, f"{text} {text}")["coherence"] == 3
    cut = text.rsplit(" ", 1)[0]
    assert rater.rate(question.text, cut)["coherence"] == 2


def test_a_refusal_hardly_helps_and_nothing_does_not_help_at_all():
    question = draw(0)
    assert rater.rate(question.text, rater.REFUSAL)["helpfulness"] <= 1
    assert set(rater.rate(question.text, " ").values()) == {0}


def test_nothing_outside_of_the_world_is_correct():
    rated = rater.rate("What is the capital of France?", "It is Paris.")
    assert rated["correctness"] == 0
    assert rated["coherence"] == 4


# The files.


def test_the_same_files_are_written_every_time(folder, tmp_path):
    ratings.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ratings.FILES)
    for name in ratings.FILES:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_every_rating_is_the_raters(folder):
    rated = rows(folder, "helpsteer.jsonl")
    assert len(rated) == 5200
    for row in rated:
        assert list(row) == ["prompt", "response", *ATTRIBUTES]
        given = {name: row[name] for name in ATTRIBUTES}
        assert given == rater.rate(last_turn(row["prompt"]), row["response"])
        assert all(0 <= rating <= 4 for rating in given.values())


def test_ratings_vary_in_every_attribute(folder):
    rated = rows(folder, "helpsteer.jsonl")
    for name in ATTRIBUTES:
        counts = Counter(row[name] for row in rated)
        assert len(counts) >= 3
        assert counts.most_common(1)[0][1] < 0.9 * len(rated)


def test_each_prompt_has_two_different_answers_and_some_have_two_turns(folder):
    rated = rows(folder, "helpsteer.jsonl")
    pairs = list(zip(rated[::2], rated[1::2], strict=True))
    assert all(first["prompt"] == second["prompt"] for first, second in pairs)
    assert all(first["response"] != second["response"] for first, second in pairs)
    two_turns = sum("<extra_id_1>" in first["prompt"] for first, _ in pairs)
    assert 0.1 < two_turns / len(pairs) < 0.2


def test_a_preference_is_for_the_more_helpful_answer(folder):
    preferences = rows(folder, "preferences.jsonl")
    splits = Counter(row["split"] for row in preferences)
    assert splits == {"train": 600, "val": 30}
    for row in preferences:
        prompt = last_turn(row["prompt"])
        first = rater.rate(prompt, row["response_1"])["helpfulness"]
        second = rater.rate(prompt, row["response_2"])["helpfulness"]
        difference = max(-3, min(3, second - first))
        assert row["preference_strength"] == difference
    strengths = {row["preference_strength"] for row in preferences}
    assert strengths == set(range(-3, 4))


def test_no_question_is_in_two_files(folder):
    seen: dict[str, str] = {}
    for name in ratings.FILES:
        for row in rows(folder, name):
            request = tasks.read(last_turn(row["prompt"]))
            assert request is not None
            key = without_greeting(last_turn(row["prompt"]))
            assert seen.setdefault(key, name) == name


def test_reward_bench_has_all_sections_and_its_columns(folder):
    items = rows(folder, "reward_bench.jsonl")
    assert len(items) == 160
    assert {tuple(row) for row in items} == {
        (
            "id",
            "prompt",
            "chosen",
            "chosen_model",
            "rejected",
            "rejected_model",
            "subset",
        )
    }
    counts = Counter(row["subset"] for row in items)
    known = {subset: name for name, subsets in SECTIONS.items() for subset in subsets}
    sections: Counter[str] = Counter()
    for subset, count in counts.items():
        sections[known[subset]] += count
    assert sections == dict.fromkeys(SECTIONS, 40)


def test_the_chosen_answer_is_rated_higher_in_every_section(folder):
    for row in rows(folder, "reward_bench.jsonl"):
        prompt = row["prompt"]
        chosen = rater.rate(prompt, row["chosen"])
        rejected = rater.rate(prompt, row["rejected"])
        assert chosen["helpfulness"] > rejected["helpfulness"]
        assert chosen["correctness"] >= rejected["correctness"]
        assert score(prompt, row["chosen"]) > score(prompt, row["rejected"]) + 0.4


def test_reward_bench_2_has_one_right_answer_of_four_and_ties(folder):
    items = rows(folder, "reward_bench_2.jsonl")
    counts = Counter(row["subset"] for row in items)
    subsets = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
    assert counts == dict.fromkeys(subsets, 20)
    for row in items:
        prompt = row["prompt"]
        assert row["num_correct"] == len(row["chosen"])
        assert row["num_incorrect"] == len(row["rejected"]) == 3
        assert row["total_completions"] == len(row["models"])
        assert len({*row["chosen"], *row["rejected"]}) == row["total_completions"]
        worst = min(score(prompt, text) for text in row["chosen"])
        best = max(score(prompt, text) for text in row["rejected"])
        assert worst > best + 0.4
        if row["subset"] != "Ties":
            assert row["num_correct"] == 1


def test_tied_answers_are_equally_good_and_have_a_reference(folder):
    ties = {
        row["id"]: row
        for row in rows(folder, "reward_bench_2.jsonl")
        if row["subset"] == "Ties"
    }
    numbers = range(10)
    assert set(ties) == {f"{kind}:{n}" for kind in ("ref", "tied") for n in numbers}
    for name, row in ties.items():
        assert row["num_correct"] == (1 if name.startswith("ref") else 3)
        rates = [rater.rate(row["prompt"], text) for text in row["chosen"]]
        assert all(rated == rates[0] for rated in rates)


# Where they are found.


def test_sources_named_tiny_read_them_without_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("BEZOAR_CACHE", str(tmp_path))
    rated = sources.read_ratings([RatingSource(source="tiny")])
    assert (len(rated.rows), rated.failed) == (5200, [])
    assert rated.rows[0].license == "Apache-2.0 (embedded)"
    assert {row.prompt[-1]["role"] for row in rated.rows} == {"user"}
    assert {len(row.prompt) for row in rated.rows} == {1, 3}
    preferred = sources.read_preferences([SourceSection(source="tiny")])
    assert (len(preferred.rows), preferred.failed) == (600, [])
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert folder.name == f"tiny-ratings-{embedded_world.ratings_fingerprint()}"
    before = folder.stat().st_ino
    embedded_world.find_ratings()
    assert folder.stat().st_ino == before


def test_their_fingerprint_covers_all_modules_that_they_are_made_of():
    found: set[str] = set()
    waiting = ["ratings.py"]
    folder = Path(tiny.__file__).parent
    while waiting:
        name = waiting.pop()
        found.add(name)
        for node in ast.walk(ast.parse((folder / name).read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            modules = [node.module.rpartition(".")[2]]
            if node.module == "bezoar_ray.tiny":
                modules = [alias.name for alias in node.names]
            elif not node.module.startswith("bezoar_ray.tiny."):
                continue
            waiting += [f"{name}.py" for name in modules if f"{name}.py" not in found]
    assert found == set(embedded_world._RATING_MODULES)


def test_the_world_is_not_built_again_for_them():
    assert {"rater.py", "ratings.py"} <= set(embedded_world._NOT_BUILT)
    folder = Path(tiny.__file__).parent
    for path in folder.glob("*.py"):
        if path.name not in embedded_world._NOT_BUILT:
            text = path.read_text()
            assert "rater" not in text and "ratings" not in text


def test_a_failure_to_make_them_shows_the_last_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("BEZOAR_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded_world, "_RATINGS", "bezoar_ray.tiny.no_such_module")
    with pytest.raises(embedded_world.BezoarError, match=r"no_such_module"):
        embedded_world.find_ratings()
