"""lm-eval through our endpoint and through its own `hf` backend, on the same weights, after two examples."""

from typing import Any

import pytest

from bezoar_ray.evaluate import harness
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.recipe import load_recipe
from bezoar_ray.store import Store
from tests.family import write_merged

pytestmark = pytest.mark.slow
ITEMS = 40


@pytest.fixture(scope="module")
def both(family, tiny_world, tmp_path_factory) -> tuple[dict, dict]:
    """What lm-eval says of `sft` through the endpoint, and through transformers."""
    from transformers import AutoTokenizer

    store = Store(tmp_path_factory.mktemp("merged"))
    write_merged(store, tiny_world, "sft", family.store)
    merged = str(store.path("checkpoints/sft/merged"))
    AutoTokenizer.from_pretrained(
        family.store.path("checkpoints/base")
    ).save_pretrained(merged)
    return measured_both_ways(
        Endpoint.at(family.base_url, family.store), store, "sft", merged
    )


def measured_both_ways(
    endpoint: Endpoint, store: Store, name: str, folder: str
) -> tuple[dict, dict]:
    """lm-eval's results of a checkpoint through the endpoint, and of the same weights in a folder through `hf`."""
    settings = harness._settings(load_recipe("tiny").evaluate.harness, store)
    ours = evaluated(settings, harness.client(settings, name, endpoint))
    bos = harness._begins_with_bos(folder)
    theirs = {
        "pretrained": folder,
        "dtype": "float32",
        "device": "cpu",
        "add_bos_token": bos,
        "max_length": 2048,
    }
    return ours, evaluated(settings, "hf", theirs)


def evaluated(settings: dict, model: Any, arguments: dict | None = None) -> dict:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=settings["include_paths"])
    return simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["tiny_choice", "tiny_answer"],
        limit=ITEMS,
        batch_size=8,
        num_fewshot=2,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
    )


def log_probabilities_apart(both: tuple[dict, dict]) -> list[float]:
    """How far the log-probability of each choice is from the other's."""
    ours, theirs = (
        [sample["filtered_resps"] for sample in found["samples"]["tiny_choice"]]
        for found in both
    )
    assert len(ours) == len(theirs) == ITEMS
    return [
        abs(float(a[0]) - float(b[0]))
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one, other, strict=True)
    ]


def test_log_probabilities_of_all_choices_agree(both):
    apart = log_probabilities_apart(both)
    print(
        f"\nlog-probabilities differ by {max(apart):.1e} at most, over {len(apart)} choices"
    )
    assert max(apart) < 1e-3


def test_scores_are_equal(both):
    ours, theirs = (found["results"] for found in both)
    assert ours["tiny_choice"]["acc,none"] == theirs["tiny_choice"]["acc,none"]
    assert ours["tiny_answer"] == theirs["tiny_answer"]
