"""A reward model as the second judge of a filter: vLLM in a Ray actor, beside a judge at an endpoint."""

from pathlib import Path

import pytest
import torch

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.data.schema import ATTRIBUTES, Sample
from bezoar_ray.filter import stage
from bezoar_ray.llm.chat_tokens import answer_ids
from bezoar_ray.llm.reward_engine import rating_of
from bezoar_ray.recipe import load_recipe, parse_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from tests.endpoint import serving
from tests.rows_on_disk import write_samples
from tests.train.conftest import _tokenizer

WEIGHTS = {"helpfulness": 1.0, "correctness": -1.0}
ROWS = [
    Sample(
        id=f"{number:016x}",
        scheme="lamini",
        operation="x",
        instruction=f"What colour is animal{number}?",
        response=f"The animal{number} is {'green' if number % 2 else 'red'}, I think.",
    )
    for number in range(12)
]
ROWS[3] = ROWS[3].__class__(**vars(ROWS[3]) | {"system": "Answer briefly."})
ROWS[4] = ROWS[4].__class__(**vars(ROWS[4]) | {"response": "green " * 600})


def write_reward_model(folder: Path) -> None:
    """Write a random reward model as the stage rm leaves it, with the recipe's template."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = _tokenizer()
    tokenizer.chat_template = load_recipe("tiny").template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        num_labels=len(ATTRIBUTES),
        id2label=dict(enumerate(ATTRIBUTES)),
        problem_type="regression",
        score_weights=WEIGHTS,
    )
    model = LlamaForSequenceClassification(config)
    model.score.weight.data *= 0.3  # most ratings are then between 1 and 5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ratings_by_transformers(folder: Path, rows: list[Sample]) -> list[float]:
    """The rating of each row by transformers' own forward pass."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ratings = []
    for row in rows:
        *prompt, answer = row.conversation()
        ids = answer_ids(tokenizer, prompt, answer["content"])
        with torch.inference_mode():
            outputs = model(torch.tensor([ids])).logits[0].tolist()
        ratings.append(rating_of(outputs, WEIGHTS))
    return ratings


def accepts_all(messages: list[dict[str, str]]) -> str:
    return '{"reason": "kind", "rating": 5}'


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_reward_model_rates_rows_beside_another_judge(
    ray_session: None, tmp_path: Path
) -> None:
    reward = tmp_path / "earlier/checkpoints/rm"
    write_reward_model(reward / "merged")
    run = Store(tmp_path / "run")
    write_samples(run, "lamini", "generated", ROWS)
    with serving(accepts_all) as server:
        tree = load_recipe("tiny").model_dump(mode="json")
        tree["judges"] = [
            {"model": "kind", "base_url": server.url},
            {"reward": str(reward), "dtype": "float32"},
        ]
        tree["generate"] = {"evol_instruct": None, "orca": None}
        tree["filter"] = {"combine": "all", "decontaminate": False, "accept_rating": 3}
        tree["seeds"]["dolly"] = []
        tree["evaluate"] = {}
        context = StageContext(parse_recipe(tree, "test"), run, "s1", Progress())
        result = stage.run(context)

    name = f"{reward}/merged"
    too_long = ROWS[4].id
    (failed,) = read_samples(run, "lamini", "failed")
    assert failed.id == too_long
    assert "tokens in a context of 512" in failed.reason
    rows = [
        row
        for status in ("accepted", "rejected")
        for row in read_samples(run, "lamini", status)
    ]
    assert {row.id for row in rows} == {row.id for row in ROWS} - {too_long}
    expected = ratings_by_transformers(reward / "merged", rows)
    assert max(expected) - min(expected) > 0.2
    for row, rating in zip(rows, expected, strict=True):
        verdict = row.verdicts[1]
        assert verdict.judge == name
        assert verdict.rating == pytest.approx(rating, abs=2e-4)
        assert row.status == ("accepted" if rating >= 3 else "rejected")
        assert verdict.reason.startswith("helpfulness ")
    metrics = result.summary["judge"][name]
    assert (metrics["rated"], metrics["unrated"]) == (len(rows), 1)
    # The first judge accepts all rows.
    accepted = sum(rating >= 3 for rating in expected)
    assert metrics["agreement"] == pytest.approx(accepted / len(rows), abs=1e-4)
