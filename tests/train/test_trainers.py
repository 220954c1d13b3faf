"""What is learned of rows and of pairs is what the methods' papers say."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from bezoar_ray.recipe import Recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import encoding, model_loading, pairs, trainers
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.orpo_asft import mean_log_probability
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.pass_size import PassSize
from bezoar_ray.train.sampler import RowsOrRepeats
from bezoar_ray.train.tokenizer import load_tokenizer
from bezoar_ray.train.training_stages import ALIGN
from tests.train.conftest import in_process, samples


@pytest.fixture
def rows(recipe: Recipe) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(recipe)
    return [
        encoding.sample_tokens(tokenizer, sample.to_row(), 1000) | {"id": sample.id}
        for sample in samples("lamini")
    ]


def settings_for(folder: Path, rows: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "seed": 0,
    }


def ready(trainer: Any, size: PassSize | None = None) -> Any:
    """A trainer as the loop sets it up, padded."""
    trainer.layout, trainer.pass_size = Layout("padded"), size or PassSize(rows=64)
    return trainer


def test_a_repeated_row_teaches_nothing(
    recipe: Recipe, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A worker without a row of the last step takes one again."""
    model = model_loading.with_new_adapter(
        model_loading.load(recipe.base), recipe.sft.lora, 0
    )
    build = trainers.supervised(load_tokenizer(recipe), recipe.sft)
    trainer = ready(
        build(model, Dataset.from_list(rows[:1]), settings_for(tmp_path, 4))
    )
    collate = trainer.get_train_dataloader().collate_fn
    repeats = RowsOrRepeats(trainer.train_dataset)
    (with_row,) = trainer.get_train_dataloader()
    without = collate([repeats[-1]])
    assert trainer.training_step(model, with_row, torch.tensor(5)).item() > 0
    model.zero_grad()
    loss = trainer.training_step(model, without, torch.tensor(5))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.item() == 0 and not any(gradient.any() for gradient in gradients)


def test_a_repeated_pair_teaches_nothing(
    hh: Store, recipe: Recipe, tmp_path: Path
) -> None:
    context = StageContext(recipe, hh, "test", Progress())
    model = model_loading.with_adapter(
        model_loading.load(recipe.base),
        str(hh.path("checkpoints/hh-sft/adapter")),
        trainable=True,
    )
    live = recipe.align.model_copy(update={"precompute_reference": False})
    (data,) = ALIGN.prepare(context)
    pair = data.open(hh).select([0])
    trainer = ready(
        trainers.preference(load_tokenizer(recipe), live)(
            model, pair, settings_for(tmp_path, 1)
        )
    )
    collate, repeats = (
        trainer.get_train_dataloader().collate_fn,
        RowsOrRepeats(trainer.train_dataset),
    )
    trainer.current_gradient_accumulation_steps, counted = 1, trainer._plan_passes
    trainer._plan_passes = lambda rows, ids: (
        counted(rows, ids)[0],
        3,
    )  # three rows elsewhere, none here
    trainer.training_step(model, collate([repeats[-1]]))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


def test_each_end_is_trained_where_padding_is_the_same_token(
    recipe: Recipe, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(recipe)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [
        encoding.sample_tokens(tokenizer, sample.to_row(), 1000) | {"id": sample.id}
        for sample in samples("lamini")
    ]
    uneven = [
        row | {name: row[name][n:] for name in ("input_ids", "labels")}
        for n, row in enumerate(rows)
    ]
    model = model_loading.with_new_adapter(
        model_loading.load(recipe.base), recipe.sft.lora, 0
    )
    part = recipe.sft.model_copy(update={"batch": 8})
    trainer = ready(
        trainers.supervised(tokenizer, part)(
            model, Dataset.from_list(uneven), settings_for(tmp_path, 8)
        )
    )
    (batch,) = trainer.get_train_dataloader()
    ends = batch["labels"] == tokenizer.eos_token_id
    assert ends.sum() == len(rows) and (
        batch["input_ids"] == tokenizer.eos_token_id
    ).sum() > len(rows)
    assert sorted(batch["ids"]) == sorted(row["id"] for row in rows)


@pytest.fixture(scope="module")
def hh(trained: tuple[Store, dict[str, Any]]) -> Store:
    """A run directory with hh-sft done."""
    return trained[0]


def aligned(hh: Store, recipe: Recipe, folder: Path, **align: Any) -> dict[str, Any]:
    """align by another method, in a copy of the run directory."""
    import shutil

    shutil.copytree(hh.root, folder, ignore=shutil.ignore_patterns("dpo", "train"))
    changed = recipe.model_copy(
        update={
            "align": recipe.align.model_copy(update={"learning_rate": 2e-3, **align})
        }
    )
    context = StageContext(changed, Store(folder), "test", Progress())
    pairs.ensure(context)
    return in_process(context, "align")[changed.align.method]


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "asft"])
def test_every_method_raises_what_is_chosen(
    hh: Store, recipe: Recipe, tmp_path: Path, method: str
) -> None:
    found = aligned(hh, recipe, tmp_path / "run", method=method, epochs=3)
    assert found["rows"] == 20 and found["steps"] == 15
    assert found["loss_last"] < found["loss_first"]
    if method != "kto":
        assert found["reward_accuracy"] > 0.5


def test_kto_estimates_its_reference_point_from_answers_to_other_prompts(
    hh: Store, recipe: Recipe, tmp_path: Path
) -> None:
    context = StageContext(recipe, hh, "test", Progress())
    model = model_loading.with_adapter(
        model_loading.for_training(Job(str(hh.root), recipe, "align", "x", ())),
        str(hh.path("checkpoints/hh-sft/adapter")),
        trainable=True,
    )
    kto = recipe.align.model_copy(update={"method": "kto"})
    (data,) = ALIGN.prepare(context)
    items = data.open(hh)
    build = trainers.preference(load_tokenizer(recipe), kto)
    trainer = ready(build(model, items, settings_for(tmp_path, kto.batch)))
    sides = trainer.train_dataset
    answers = {
        tuple(row["prompt_ids"]): {tuple(row["chosen_ids"]), tuple(row["rejected_ids"])}
        for row in items
    }
    assert len(sides) == 2 * len(items)
    for side in sides:
        own = answers[tuple(side["prompt_ids"])]
        assert (
            tuple(side["completion_ids"]) in own
            and tuple(side["KL_completion_ids"]) not in own
        )
    seen: list[str] = []
    for step in trainer.get_train_dataloader():
        count = len(step["ids"])
        assert (
            step["label"].tolist() == [True] * count + [False] * count
        )  # both sides of each pair
        seen += step["ids"]
    assert sorted(seen) == sorted(items["id"])


@pytest.mark.parametrize(
    ("loss", "first"),
    [
        ("sigmoid", math.log(2)),
        ("bco_pair", 2 * math.log(2)),
        ("apo_zero", 1),
        ("hinge", 1),
        ("ipo", 25),
    ],
)
def test_trls_losses_begin_where_policy_and_reference_are_one(
    hh: Store, recipe: Recipe, tmp_path: Path, loss: str, first: float
) -> None:
    found = aligned(hh, recipe, tmp_path / "run", loss_type=(loss,))
    assert found["loss_first"] == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "smoothing", "beta", "value"),
    [
        ("sigmoid", 0.0, 0.1, 0.620957),
        ("sigmoid", 0.0, 0.05, 0.656350),
        ("sigmoid", 0.0, 0.5, 0.386871),
        ("robust", 0.1, 0.1, 0.602207),
        ("apo_zero", 0.0, 0.1, 0.962523),
        ("bco_pair", 0.0, 0.1, 1.312856),
        ("nca_pair", 0.0, 0.1, 1.350825),
    ],
)
def test_trls_losses_by_hand(
    hh: Store,
    recipe: Recipe,
    tmp_path: Path,
    loss: str,
    smoothing: float,
    beta: float,
    value: float,
) -> None:
    """The chosen answer has gained 1 on the reference, the rejected one has lost 0.5: log-probabilities of -10 and -12
    beside -11 and -11.5."""
    context = StageContext(recipe, hh, "test", Progress())
    align = recipe.align.model_copy(
        update={"loss_type": (loss,), "label_smoothing": smoothing, "beta": beta}
    )
    model = model_loading.with_adapter(
        model_loading.load(recipe.base),
        str(hh.path("checkpoints/hh-sft/adapter")),
        trainable=True,
    )
    (data,) = ALIGN.prepare(context)
    pair = data.open(hh).select([0])
    trainer = ready(
        trainers.preference(load_tokenizer(recipe), align)(
            model, pair, settings_for(tmp_path, 1)
        )
    )
    (batch,) = trainer.get_train_dataloader()
    del batch["rows"], batch["ids"]
    with torch.no_grad():
        now = mean_log_probability(trainer.model, batch) * batch["completion_mask"].sum(
            dim=1
        )
    batch |= {"ref_chosen_logps": now[:1] - 1, "ref_rejected_logps": now[1:] + 0.5}
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(
        value, abs=1e-5
    )


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_precomputed_reference_is_the_live_one(
    hh: Store, recipe: Recipe, tmp_path: Path, method: str
) -> None:
    found = [
        aligned(
            hh, recipe, tmp_path / str(ahead), method=method, precompute_reference=ahead
        )["by_step"]
        for ahead in (True, False)
    ]
    ahead, live = ([point["loss"] for point in points] for points in found)
    assert ahead == pytest.approx(live, abs=1e-5) and len(set(live)) == len(live)


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(
    hh: Store, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(
        Exception,
        match=r"align: loss or gradient is NaN or inf at step [23], in rows \w+.* lower learning_rate",
    ):
        aligned(hh, recipe, tmp_path / "run", learning_rate=1e30, max_grad_norm=1e30)
