"""A step learns the same whatever its passes are."""

import random
from typing import Any

import pytest
import torch
from datasets import Dataset

from bezoar_ray.recipe import Recipe, Rm
from bezoar_ray.train import encoding, model_loading, packing, trainers
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.pass_size import PassSize
from bezoar_ray.train.passes import Row, deal, split, take, work
from bezoar_ray.train.tokenizer import load_tokenizer
from tests.train.conftest import samples

FLAT, PADDED = Layout("flat"), Layout("padded")


def conversations(*lengths: int) -> list[Row]:
    return [Row(length, 1, length) for length in lengths]


def random_rows(draw: random.Random, count: int, sequences: int) -> list[Row]:
    lengths = [
        min(2048, int(256 * draw.lognormvariate(0, 1)) + 1) for _ in range(count)
    ]
    return [Row(sequences * length, sequences, length) for length in lengths]


@pytest.mark.parametrize("layout", [FLAT, PADDED])
@pytest.mark.parametrize("sequences", [1, 2])
def test_each_row_is_in_one_pass_and_no_pass_is_too_large(
    layout: Layout, sequences: int
) -> None:
    draw = random.Random(0)
    for _ in range(300):
        rows = random_rows(draw, draw.randrange(1, 65), sequences)
        size = draw.choice(
            [
                PassSize(rows=draw.randrange(1, 20)),
                PassSize(tokens=draw.randrange(64, 20_000)),
            ]
        )
        passes = split(rows, size, layout)
        assert sorted(index for indices in passes for index in indices) == list(
            range(len(rows))
        )
        assert all(passes)
        for indices in passes:
            alone = len(indices) == 1
            assert alone or not size.rows or len(indices) <= size.rows
            assert (
                alone
                or not size.tokens
                or work([rows[index] for index in indices], layout) <= size.tokens
            )


@pytest.mark.parametrize("layout", [FLAT, PADDED])
def test_as_many_passes_of_as_many_rows_have_the_same_numbers_of_rows_on_all_workers(
    layout: Layout,
) -> None:
    draw = random.Random(0)
    for _ in range(300):
        count = draw.randrange(1, 33)
        passes = draw.randrange(1, count + 1)
        here, there = (
            deal(random_rows(draw, count, 1), passes, layout) for _ in range(2)
        )
        assert (
            [*map(len, here)] == [*map(len, there)]
            and len(here) == passes
            and all(here)
        )
    assert split([], PassSize(rows=4), layout) == deal([], 0, layout) == []


def test_there_are_as_few_passes_as_hold_the_tokens() -> None:
    rows = conversations(*[100] * 16)
    assert [len(indices) for indices in split(rows, PassSize(tokens=1600), FLAT)] == [
        16
    ]
    assert [len(indices) for indices in split(rows, PassSize(tokens=1599), FLAT)] == [
        8,
        8,
    ]
    assert split(rows, PassSize(rows=16), FLAT) == [list(range(16))]
    assert [len(indices) for indices in split(rows, PassSize(rows=5), FLAT)] == [
        4,
        4,
        4,
        4,
    ]


def test_passes_have_about_equal_work() -> None:
    passes = split(
        conversations(900, 100, 500, 500, 100, 900), PassSize(tokens=1500), FLAT
    )
    assert sorted(
        sum((900, 100, 500, 500, 100, 900)[i] for i in indices) for indices in passes
    ) == [1500, 1500]


def test_padded_rows_lie_beside_rows_of_their_length() -> None:
    assert split(conversations(10, 1000, 20, 990), PassSize(tokens=2000), PADDED) == [
        [1, 3],
        [2, 0],
    ]


def test_a_row_that_is_longer_than_a_pass_is_one_by_itself() -> None:
    passes = split(conversations(5000, 10, 10), PassSize(tokens=1000), FLAT)
    assert [0] in passes and all(
        0 not in indices or len(indices) == 1 for indices in passes
    )


def test_taking_rows_takes_both_sides_of_pairs_and_no_padding() -> None:
    ids = torch.arange(24).reshape(
        6, 4
    )  # three pairs: the chosen sides, then the rejected ones
    found = take(
        {"input_ids": ids, "ref_chosen_logps": torch.tensor([0.0, 1.0, 2.0])},
        [2, 0],
        total=3,
        longest=2,
    )
    assert torch.equal(found["input_ids"], ids[[2, 0, 5, 3], :2])
    assert found["ref_chosen_logps"].tolist() == [2.0, 0.0]


def uneven(row: dict[str, list[int]], share: float) -> dict[str, list[int]]:
    """The last tokens of a row, the answer among them."""
    kept = round(share * len(row["input_ids"]))
    return {name: tokens[-kept:] for name, tokens in row.items()}


def rows_of(recipe: Recipe, method: str) -> Dataset:
    """Eight rows of uneven lengths, or pairs."""
    tokenizer = load_tokenizer(recipe)
    rows = [
        encoding.sample_tokens(tokenizer, sample.to_row(), 1000)
        for sample in samples("lamini")
    ]
    rows = [uneven(row, 1 - n / 10) | {"id": f"row{n}"} for n, row in enumerate(rows)]
    if method == "sft":
        return Dataset.from_list(rows)
    if method == "ratings":
        return Dataset.from_list([rated(row, n) for n, row in enumerate(rows)])
    sides = [[row["input_ids"][begin:] for row in rows] for begin in (-12, -7)]
    pairs = [
        {
            "id": row["id"],
            "prompt_ids": row["input_ids"][:-12],
            "chosen_ids": chosen,
            "rejected_ids": rejected[::-1],
        }
        for row, chosen, rejected in zip(rows, *sides, strict=True)
    ]
    if method == "preferences":
        strengths = [{"strength": [float(1 + n % 3)]} for n in range(len(pairs))]
        pairs = [
            pair | strength for pair, strength in zip(pairs, strengths, strict=True)
        ]
    return Dataset.from_list(pairs)


def rated(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with five ratings, of which a different number is missing in each row."""
    ratings = [float((number + column) % 5) for column in range(5)]
    for column in range(number % 4):
        ratings[column] = float(encoding.IGNORED)
    return {"id": row["id"], "input_ids": row["input_ids"], "labels": ratings}


def trained(
    recipe: Recipe,
    folder: Any,
    method: str,
    size: PassSize,
    layout: Layout,
    rows: int = 8,
    batch: int = 4,
    workers: int = 1,
) -> tuple[list[float], Any]:
    """The losses of two epochs, and the adapter after them."""
    tokenizer, lora = load_tokenizer(recipe), recipe.sft.lora
    rates = method in ("ratings", "preferences")
    if rates:
        frozen = model_loading.load_reward_model(recipe.base, recipe.base.model, seed=0)
    else:
        frozen = model_loading.load(recipe.base)
    model = model_loading.with_new_adapter(frozen, lora, 0)
    for (
        name,
        weight,
    ) in (
        model.named_parameters()
    ):  # B begins at zero, where the reference's answers are the policy's
        if "lora_B" in name:
            torch.nn.init.normal_(
                weight.data, std=0.02, generator=torch.Generator().manual_seed(0)
            )
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch // workers,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "ddp_find_unused_parameters": False,
        "seed": 0,
        "adam_epsilon": 1e-3,  # or a gradient that is nearly zero, whose sign is noise, moves a weight as any other
    }
    share = {"batch": batch, "workers": workers}
    if method == "sft":
        build = trainers.supervised(tokenizer, recipe.sft.model_copy(update=share))
    elif rates:
        build = trainers.reward(tokenizer, Rm(lora=lora).model_copy(update=share))
    else:
        asked = share | {"method": method, "precompute_reference": False}
        build = trainers.preference(tokenizer, recipe.align.model_copy(update=asked))
    with packing.packed(model, layout):
        trainer = build(model, rows_of(recipe, method).select(range(rows)), settings)
        trainer.layout, trainer.pass_size = layout, size
        trainer.train()
    losses = [point["loss"] for point in trainer.state.log_history if "loss" in point]
    return losses, {
        name: p.detach()
        for name, p in model.named_parameters()
        if p.requires_grad and ".ref." not in name
    }


@pytest.mark.parametrize(
    "method", ["sft", "dpo", "orpo", "asft", "ratings", "preferences"]
)
def test_a_step_in_passes_is_the_step_in_one(
    recipe: Recipe, tmp_path: Any, method: str
) -> None:
    whole = trained(recipe, tmp_path, method, PassSize(rows=4), PADDED)
    assert len(set(whole[0])) == 4
    for size, layout in (
        (PassSize(rows=4), FLAT),
        (PassSize(rows=1), FLAT),
        (PassSize(tokens=100), FLAT),
        (PassSize(rows=3), PADDED),
    ):
        losses, adapter = trained(recipe, tmp_path, method, size, layout)
        assert losses == pytest.approx(whole[0], abs=1e-4)
        for name, weight in whole[1].items():
            assert torch.allclose(adapter[name], weight, atol=1e-4), (
                name,
                size,
                layout,
            )


def test_an_optimiser_step_waits_for_all_of_its_passes(
    recipe: Recipe, tmp_path: Any
) -> None:
    """Three steps of four rows, each row a pass: three updates, not twelve."""
    tokenizer = load_tokenizer(recipe)
    model = model_loading.with_new_adapter(
        model_loading.load(recipe.base), recipe.sft.lora, 0
    )
    settings = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "max_steps": 3,
        "report_to": "none",
    }
    trainer = trainers.supervised(tokenizer, recipe.sft)(
        model, rows_of(recipe, "sft"), settings
    )
    trainer.layout, trainer.pass_size = PADDED, PassSize(rows=1)
    passes: list[int] = []
    compute = trainer.compute_loss
    trainer.compute_loss = lambda *args, **more: (
        passes.append(args[1]["input_ids"].shape[0]) or compute(*args, **more)
    )
    trainer.train()
    assert passes == [1] * 12 and trainer.state.global_step == 3
