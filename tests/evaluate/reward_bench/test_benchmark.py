"""What follows from the models' values, and for which models and items they are valid."""

from dataclasses import replace

import pytest

from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.evaluate.evaluate_stage import (
    identities,
    reward_model_identity,
    run,
)
from bezoar_ray.evaluate.reward_bench.benchmark import (
    RewardBenchmark,
    summarize_models,
)
from bezoar_ray.evaluate.reward_bench.scorer import weighted_scores
from bezoar_ray.recipe import Recipe, Rm, load_recipe
from bezoar_ray.runs import manifest
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from tests.evaluate.reward_bench.files import write_version_1, write_version_2

CHECKPOINTS = {"base": "b", "sft": "s", "hh-sft": "h", "dpo": "d"}
ANSWERS = 10  # of the five pairs
ANSWERS_2 = 4 + 4 + 3 + 5


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """The tiny recipe with RewardBench alone, and with a reward model."""
    write_version_1(tmp_path / "one.jsonl")
    write_version_2(tmp_path / "two.jsonl")
    return load_recipe(
        "tiny",
        [
            "evaluate.harness=null",
            "evaluate.mt_bench=null",
            f"evaluate.reward_bench.one={tmp_path}/one.jsonl",
            f"evaluate.reward_bench.two={tmp_path}/two.jsonl",
            "rm={weights: {helpfulness: 1.0}}",
        ],
    )


def benchmark(recipe: Recipe, store: Store) -> RewardBenchmark:
    return RewardBenchmark(recipe.evaluate.reward_bench, store, CHECKPOINTS, "r")


def fill(bench: RewardBenchmark) -> None:
    """Save values of all models.

    The reward model rates chosen answers of version 1 higher, and by verbosity all
    answers alike. Each checkpoint doubles the log-probabilities of the one before.
    """
    for place, name in enumerate(CHECKPOINTS):
        bench.save(name, "one", [-(2.0**place) * (1 + n % 2) for n in range(ANSWERS)])
        bench.save(name, "two", [-1.0 - place * n for n in range(ANSWERS_2)])
    ratings = [[4.0 - n % 2, 0.0, 0.0, 0.0, 1.0] for n in range(ANSWERS)]
    bench.save("rm", "one", ratings)
    bench.save("rm", "two", [[0.0] * 5 for _ in range(ANSWERS_2)])


def test_the_score_is_the_weighted_sum_of_the_ratings():
    """Two answers by hand, with the three published sets of weights (2406.08673)."""
    ratings = [[3.2, 3.0, 3.9, 1.6, 1.8], [1.1, 0.7, 3.1, 1.2, 2.4]]
    assert tuple(Rm().weights) == ATTRIBUTES
    small = weighted_scores(ratings, Rm().weights)
    assert small.tolist() == pytest.approx([6.395, 2.370])
    large = (0.3, 0.74, 0.46, 0.47, -0.33)
    weights = dict(zip(ATTRIBUTES, large, strict=True))
    assert weighted_scores(ratings, weights).tolist() == pytest.approx([5.132, 2.046])
    goodness = {"coherence": 0.45, "helpfulness": 0.65, "correctness": 0.8}
    assert weighted_scores(ratings, goodness).tolist() == pytest.approx([6.235, 2.670])


def test_the_reward_model_is_scored_beside_the_implicit_rewards(recipe, tmp_path):
    bench = benchmark(recipe, Store(tmp_path / "run"))
    fill(bench)
    summary = summarize_models(recipe, bench)
    assert summary["weights"] == {"helpfulness": 1.0}
    assert summary["one"]["overall"] == 1.0
    assert summary["one"]["sections"]["Reasoning"]["items"] == 2
    assert summary["two"]["sections"]["Math"]["score"] == 0.25  # all equal
    # base has no reference, so it has no implicit reward.
    assert list(summary["implicit"]) == ["sft", "hh-sft", "dpo"]
    for name, place in (("sft", 1), ("hh-sft", 2), ("dpo", 3)):
        # Chosen: -2^p + 2^(p-1) = -2^(p-1). Rejected: twice as low.
        assert summary["implicit"][name]["one"]["overall"] == 1.0, place
        # The first answer's reward falls least, so it is the highest.
        assert summary["implicit"][name]["two"]["sections"]["Math"]["score"] == 1.0


def test_other_weights_need_no_model(recipe, tmp_path):
    """The files have the ratings, and the scores follow from them."""
    bench = benchmark(recipe, Store(tmp_path / "run"))
    fill(bench)
    against = recipe.rm.model_copy(update={"weights": {"helpfulness": -1.0}})
    turned = recipe.model_copy(update={"rm": against})
    assert summarize_models(turned, bench)["one"]["overall"] == 0.0
    even = recipe.rm.model_copy(update={"weights": {"verbosity": 1.0}})
    equal = recipe.model_copy(update={"rm": even})
    assert summarize_models(equal, bench)["one"]["overall"] == 0.0


def test_values_are_valid_for_one_identity_and_the_same_items(recipe, tmp_path):
    store = Store(tmp_path / "run")
    bench = benchmark(recipe, store)
    assert list(bench.unknown("sft")) == ["one", "two"]
    fill(bench)
    assert list(bench.unknown("sft")) == list(bench.unknown("rm")) == []
    assert not bench.is_endpoint_needed

    retrained = replace(bench, checkpoints=CHECKPOINTS | {"dpo": "new"})
    assert list(retrained.unknown("dpo")) == ["one", "two"]
    assert list(retrained.unknown("sft")) == []
    assert retrained.is_endpoint_needed
    assert list(replace(bench, reward_model="new").unknown("rm")) == ["one", "two"]

    path = tmp_path / "one.jsonl"
    path.write_text(path.read_text().replace("Valletta", "Gozo"))
    edited = benchmark(recipe, store)
    assert list(edited.unknown("sft")) == ["one"]


def test_an_item_that_does_not_fit_is_left_out_and_counted(recipe, tmp_path):
    bench = benchmark(recipe, Store(tmp_path / "run"))
    fill(bench)
    sums = [-1.0] * ANSWERS
    sums[3] = None  # the rejected answer of the second item
    bench.save("hh-sft", "one", sums)
    implicit = summarize_models(recipe, bench)["implicit"]
    # It is missing for the checkpoint and for the one whose reference it is.
    assert [implicit[name]["one"]["left_out"] for name in implicit] == [0, 1, 1]
    assert "Chat Hard" not in implicit["dpo"]["one"]["sections"]
    assert implicit["dpo"]["one"]["overall"] is None


def test_a_stage_whose_values_are_known_starts_no_endpoint(recipe, tmp_path):
    """A changed weight redoes the stage. All values are in the run directory."""
    store = Store(tmp_path / "run")
    for name in CHECKPOINTS:
        fields = {"name": name, "fingerprint": name}
        store.replace_json(f"checkpoints/{name}/lineage.json", fields)
        if name != "base":
            store.replace(f"checkpoints/{name}/joined/x", "")
    store.replace_json("checkpoints/rm/lineage.json", {"fingerprint": "weights"})
    known = RewardBenchmark(
        recipe.evaluate.reward_bench,
        store,
        identities(recipe, store),
        reward_model_identity(recipe, store),
    )
    fill(known)
    result = run(StageContext(recipe, store, "session", Progress()))
    summary = result.summary["eval"]["reward_bench"]
    assert summary["one"]["overall"] == 1.0
    assert result.files == [
        f"eval/reward_bench/{name}.json" for name in (*CHECKPOINTS, "rm")
    ]
    # The values outlive the stage's manifest.
    outcome = manifest.StageManifest("f", 1.0, result.files)
    manifest.save(store, "evaluate", outcome)
    manifest.forget(store, "evaluate")
    assert all(map(store.exists, result.files))


def test_a_run_without_a_reward_model_has_implicit_rewards_alone(recipe, tmp_path):
    store = Store(tmp_path / "run")
    assert reward_model_identity(recipe, store) is None  # not trained yet
    bench = replace(benchmark(recipe, store), reward_model=None)
    for name in CHECKPOINTS:
        bench.save(name, "one", [-1.0] * ANSWERS)
        bench.save(name, "two", [-1.0] * ANSWERS_2)
    summary = summarize_models(recipe, bench)
    assert list(summary) == ["implicit"]
    # Equal rewards: wrong in version 1, and one answer of four in version 2.
    assert summary["implicit"]["sft"]["one"]["overall"] == 0.0
    assert summary["implicit"]["sft"]["two"]["sections"]["Math"]["score"] == 0.25
