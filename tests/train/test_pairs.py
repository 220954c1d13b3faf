"""Held-out pairs share no dialogue with training, stay the same, and are written once."""

from dataclasses import replace
from pathlib import Path

from bezoar_ray.data.schema import Pair
from bezoar_ray.recipe import SourceSection
from bezoar_ray.stages import StageContext
from bezoar_ray.train import pairs


def pair(number: int, opening: str) -> Pair:
    return Pair(
        str(number), "s", "MIT", [{"role": "user", "content": opening}], "good", "bad"
    )


def test_a_dialogue_is_on_one_side_only() -> None:
    rows = [pair(i, f"question {i // 3}") for i in range(60)]
    training, heldout = pairs.split(rows, wanted=10, seed=0)
    assert 6 <= len(heldout) <= 10 and len(training) + len(heldout) == 60
    assert not {p.prompt[0]["content"] for p in training} & {
        p.prompt[0]["content"] for p in heldout
    }


def test_a_fifth_is_held_out_at_most() -> None:
    training, heldout = pairs.split(
        [pair(i, f"q{i}") for i in range(20)], wanted=100, seed=0
    )
    assert (len(training), len(heldout)) == (16, 4)


def test_the_split_does_not_depend_on_order_but_on_the_seed() -> None:
    rows = [pair(i, f"q{i}") for i in range(100)]
    first, again, other = (
        {p.id for p in pairs.split(some, 20, seed)[1]}
        for some, seed in ((rows, 0), (rows[::-1], 0), (rows, 1))
    )
    assert first == again != other


def test_written_once_and_anew_for_another_recipe(context: StageContext) -> None:
    pairs.ensure(context)
    path = context.store.path("data/hh_rlhf/heldout/part-0.parquet")
    written = path.stat().st_mtime_ns
    pairs.ensure(context)
    assert path.stat().st_mtime_ns == written
    assert (
        len(pairs.read(context.store, "sft")),
        len(pairs.read(context.store, "heldout")),
    ) == (20, 4)
    shorter = context.recipe.model_copy(
        update={"hh_sft": context.recipe.hh_sft.model_copy(update={"limit": 5})}
    )
    pairs.ensure(replace(context, recipe=shorter))
    assert len(pairs.read(context.store, "sft")) == 5
    assert len(pairs.read(context.store, "pairs")) == 20


def test_malformed_pairs_are_counted_and_left_out(
    context: StageContext, pairs_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text(pairs_file.read_text() + '\n{"chosen": "no transcript"}\n')
    seeds = context.recipe.seeds.model_copy(
        update={"hh_rlhf": (SourceSection(source=str(path)),)}
    )
    broken = replace(context, recipe=context.recipe.model_copy(update={"seeds": seeds}))
    assert pairs.ensure(broken) == pairs.ensure(broken) == 1
    assert len(pairs.read(context.store, "sft")) == 20
