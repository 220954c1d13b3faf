"""What is learned of packed rows and of pairs is what the methods' papers say."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bezoar_ray.progress import Progress
from bezoar_ray.recipe import Recipe
from bezoar_ray.stage import Context
from bezoar_ray.store import Store
from bezoar_ray.train import data, models, packing, pairs, preference, trainers
from bezoar_ray.train.odds import mean_log_probability
from bezoar_ray.train.tokenizer import load_tokenizer
from bezoar_ray.train.unsound import watched
from bezoar_ray.train.worker import Job
from tests.train.conftest import in_process, samples


@pytest.fixture
def rows(recipe: Recipe) -> list[dict[str, list[int]]]:
    tokenizer = load_tokenizer(recipe)
    return [data.sample_tokens(tokenizer, sample.to_row(), 1000) for sample in samples("lamini")]


@pytest.mark.parametrize(
    ("lengths", "sequences"),
    [
        ([5], [[0]]),
        ([3, 3, 3], [[0], [1], [2]]),  # nothing fits beside another
        ([2, 9, 4, 3, 5], [[1], [4, 2], [3, 0]]),  # the longest first, each where least is left
    ],
)
def test_rows_fill_few_sequences_none_longer_than_the_longest(lengths: list[int], sequences: list[list[int]]) -> None:
    assert packing.fill(lengths) == sequences


def uneven(row: dict[str, list[int]], share: float) -> dict[str, list[int]]:
    """The last tokens of a row, the answer among them."""
    kept = round(share * len(row["input_ids"]))
    return {name: tokens[-kept:] for name, tokens in row.items()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_rows_do_not_see_each_other(recipe: Recipe, rows: list[dict[str, Any]], attention: str) -> None:
    tokenizer = load_tokenizer(recipe)
    model = models.load(recipe.base, attn_implementation=attention).eval()
    rows = [uneven(row, share) for row, share in zip(rows[1:6], (1.0, 0.5, 0.35, 0.6, 0.3), strict=True)]
    batch = packing.collator(tokenizer.pad_token_id)(rows)
    assert batch["input_ids"].shape == (3, len(rows[0]["input_ids"])) and "attention_mask" not in batch
    with torch.inference_mode():
        packed = model(**batch, use_cache=False).logits
        alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    for sequence, together in zip(packed, packing.fill([len(row["input_ids"]) for row in rows]), strict=True):
        expected = torch.cat([alone[n] for n in together])
        assert torch.allclose(sequence[: len(expected)], expected, atol=1e-5)


def test_a_step_on_packed_rows_is_the_step_on_the_rows(recipe: Recipe, rows: list[dict[str, Any]], tmp_path) -> None:
    """The same eight rows in one step: loss and adapter agree, side by side or padded."""
    from datasets import Dataset

    tokenizer, found = load_tokenizer(recipe), {}
    rows = [uneven(row, 1 - n / 10) for n, row in enumerate(rows)]
    for name in ("packed", "padded"):
        model = models.with_new_adapter(models.load(recipe.base), recipe.sft.lora, 0)
        settings = {
            "output_dir": str(tmp_path), "per_device_train_batch_size": len(rows), "max_length": None, "bf16": False,
            "use_cpu": True, "gradient_checkpointing": False, "max_steps": 3, "learning_rate": 0.01,
            "report_to": "none", "logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant",
        }  # fmt: skip
        part = recipe.sft.model_copy(update={"packing": name == "packed"})
        trainer = trainers.supervised(tokenizer, part)(model, Dataset.from_list(rows), settings)
        trainer.train()
        losses = [point["loss"] for point in trainer.state.log_history if "loss" in point]
        found[name] = losses, {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    assert found["packed"][0] == pytest.approx(found["padded"][0], abs=1e-4)
    assert found["packed"][0][2] < found["packed"][0][0]
    for name, weight in found["packed"][1].items():
        assert torch.allclose(weight, found["padded"][1][name], atol=1e-4)


@pytest.mark.parametrize("packed", [True, False])
def test_a_pass_of_what_was_added_teaches_nothing(
    recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path, packed: bool
) -> None:
    """One row for two workers of four rows each: a worker gets a pass without a row."""
    from datasets import Dataset

    part = recipe.sft.model_copy(update={"packing": packed, "workers": 2})
    model = models.with_new_adapter(models.load(recipe.base), recipe.sft.lora, 0)
    settings = {"output_dir": str(tmp_path), "per_device_train_batch_size": 4, "max_length": None, "bf16": False,
                "use_cpu": True, "gradient_checkpointing": False, "report_to": "none"}  # fmt: skip
    trainer = trainers.supervised(load_tokenizer(recipe), part)(model, Dataset.from_list(rows[:1]), settings)
    with_row, without = trainer.get_train_dataloader()
    assert trainer.compute_loss(model, with_row).item() > 0
    loss = trainer.compute_loss(model, without)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.item() == 0 and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("packed", [True, False])
def test_each_end_is_trained_where_padding_is_the_same_token(recipe: Recipe, tmp_path: Path, packed: bool) -> None:
    from datasets import Dataset

    tokenizer = load_tokenizer(recipe)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [data.sample_tokens(tokenizer, sample.to_row(), 1000) for sample in samples("lamini")]
    rows = [uneven(row, 1 - n / 10) for n, row in enumerate(rows)]
    part = recipe.sft.model_copy(update={"packing": packed})
    settings = {"output_dir": str(tmp_path), "per_device_train_batch_size": len(rows), "max_length": None,
                "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none"}  # fmt: skip
    model = models.with_new_adapter(models.load(recipe.base), recipe.sft.lora, 0)
    (batch,) = trainers.supervised(tokenizer, part)(model, Dataset.from_list(rows), settings).get_train_dataloader()
    ends = batch["labels"] == tokenizer.eos_token_id
    assert ends.sum() == len(rows) and (batch["input_ids"] == tokenizer.eos_token_id).sum() > len(rows)


@pytest.fixture(scope="module")
def hh(trained: tuple[Store, dict[str, Any]]) -> Store:
    """A run directory with hh-sft done."""
    return trained[0]


def aligned(hh: Store, recipe: Recipe, folder: Path, **align: Any) -> dict[str, Any]:
    """dpo by another method, in a copy of the run directory."""
    import shutil

    shutil.copytree(hh.root, folder, ignore=shutil.ignore_patterns("dpo", "train"))
    changed = recipe.model_copy(update={"align": recipe.align.model_copy(update={"learning_rate": 2e-3, **align})})
    context = Context(changed, Store(folder), "test", Progress())
    pairs.ensure(context)
    return in_process(context, "dpo")["dpo"]


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "asft"])
def test_every_method_raises_what_is_chosen(hh: Store, recipe: Recipe, tmp_path: Path, method: str) -> None:
    found = aligned(hh, recipe, tmp_path / "run", method=method, epochs=3)
    assert found["rows"] == 20 and found["steps"] == 15
    assert found["loss_last"] < found["loss_first"]
    if method != "kto":
        assert found["reward_accuracy"] > 0.5


@pytest.mark.parametrize("micro", [1, 2])
def test_kto_estimates_its_reference_point_from_answers_to_other_prompts(
    hh: Store, recipe: Recipe, tmp_path: Path, micro: int
) -> None:
    context = Context(recipe, hh, "test", Progress())
    model = models.with_adapter(models.for_training(Job(str(hh.root), recipe, "dpo", "x", ())),
                                str(hh.path("checkpoints/hh-sft/adapter")), trainable=True)  # fmt: skip
    kto = recipe.align.model_copy(update={"method": "kto"})
    settings = {"output_dir": str(tmp_path), "per_device_train_batch_size": micro, "max_length": None, "seed": 0,
                "use_cpu": True, "bf16": False, "report_to": "none"}  # fmt: skip
    items = preference.prepared(context).open(hh)
    sides = trainers.preference(load_tokenizer(recipe), kto)(model, items, settings).train_dataset
    answers = {tuple(row["prompt_ids"]): {tuple(row["chosen_ids"]), tuple(row["rejected_ids"])} for row in items}
    assert len(sides) == 2 * len(items)
    for side in sides:
        own = answers[tuple(side["prompt_ids"])]
        assert tuple(side["completion_ids"]) in own and tuple(side["KL_completion_ids"]) not in own


@pytest.mark.parametrize(
    ("loss", "first"),
    [("sigmoid", math.log(2)), ("bco_pair", 2 * math.log(2)), ("apo_zero", 1), ("hinge", 1), ("ipo", 25)],
)
def test_trls_losses_begin_where_policy_and_reference_are_one(
    hh: Store, recipe: Recipe, tmp_path: Path, loss: str, first: float
) -> None:
    found = aligned(hh, recipe, tmp_path / "run", loss_type=(loss,))
    assert found["loss_first"] == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "smoothing", "beta", "value"),
    [
        ("sigmoid", 0.0, 0.1, 0.620957), ("sigmoid", 0.0, 0.05, 0.656350), ("sigmoid", 0.0, 0.5, 0.386871),
        ("robust", 0.1, 0.1, 0.602207), ("apo_zero", 0.0, 0.1, 0.962523), ("bco_pair", 0.0, 0.1, 1.312856),
        ("nca_pair", 0.0, 0.1, 1.350825),
    ],
)  # fmt: skip
def test_trls_losses_by_hand(
    hh: Store, recipe: Recipe, tmp_path: Path, loss: str, smoothing: float, beta: float, value: float
) -> None:
    """The chosen answer has gained 1 on the reference, the rejected one has lost 0.5: log-probabilities of -10 and -12
    beside -11 and -11.5."""
    context = Context(recipe, hh, "test", Progress())
    align = recipe.align.model_copy(update={"loss_type": (loss,), "label_smoothing": smoothing, "beta": beta})
    model = models.with_adapter(models.load(recipe.base), str(hh.path("checkpoints/hh-sft/adapter")), trainable=True)
    settings = {"output_dir": str(tmp_path), "per_device_train_batch_size": 1, "max_length": None, "bf16": False,
                "use_cpu": True, "gradient_checkpointing": False, "report_to": "none"}  # fmt: skip
    pair = preference.prepared(context).open(hh).select([0])
    trainer = trainers.preference(load_tokenizer(recipe), align)(model, pair, settings)
    (batch,) = trainer.get_train_dataloader()
    with torch.no_grad():
        now = mean_log_probability(trainer.model, batch) * batch["completion_mask"].sum(dim=1)
    batch |= {"ref_chosen_logps": now[:1] - 1, "ref_rejected_logps": now[1:] + 0.5}
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_precomputed_reference_is_the_live_one(hh: Store, recipe: Recipe, tmp_path: Path, method: str) -> None:
    found = [
        aligned(hh, recipe, tmp_path / str(ahead), method=method, precompute_reference=ahead)["by_step"]
        for ahead in (True, False)
    ]
    ahead, live = ([point["loss"] for point in points] for points in found)
    assert ahead == pytest.approx(live, abs=1e-5) and len(set(live)) == len(live)


def test_a_gradient_that_is_no_number_counts_though_the_loss_is_one() -> None:
    class Overflows:
        def training_step(self, *_: Any) -> torch.Tensor:
            return torch.tensor(1.0)

        def _get_grad_norm(self, *_: Any) -> float:
            return float("nan")

    trainer = watched(Overflows)()
    trainer.training_step(None, {"input_ids": "the pass"})
    assert trainer.unsound is None
    trainer._get_grad_norm(None)
    assert trainer.unsound == "the pass"


def test_a_loss_that_is_no_number_stops_with_step_and_rows(hh: Store, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(
        Exception,
        match=r"dpo: the loss or its gradient is no number in step [23], in rows \w+.* lower learning_rate",
    ):
        aligned(hh, recipe, tmp_path / "run", learning_rate=1e30, max_grad_norm=1e30)
