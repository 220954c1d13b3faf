"""What an iteration samples: its prompts, its forced tokens, and the answers of a small model."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar_ray.recipe import Recipe
from bezoar_ray.train import model_loading, rollouts
from bezoar_ray.train.rollouts import Prompt, PromptSchedule, Sampler, prompts_of

END = 1


@pytest.fixture(scope="module")
def model(recipe: Recipe) -> Any:
    """The untrained base."""
    return model_loading.load(recipe.base).eval()


def sampler(**changes: Any) -> Sampler:
    settings = {
        "seed": 0,
        "temperature": 1.0,
        "max_tokens": 12,
        "max_length": 64,
        "end_ids": (END,),
        "pad_id": 2,
    }
    return Sampler(**(settings | changes))


def prompt(number: int, length: int, forced: int = 0) -> Prompt:
    ids = [3 + (7 * number + position) % 200 for position in range(length + forced)]
    return Prompt(f"row{number}", f"row{number}.0", ids[:length], ids[length:])


PROMPTS = [prompt(number, 4 + number, forced=number % 3) for number in range(6)]


def test_an_answer_depends_neither_on_its_neighbors_nor_on_padding(model: Any) -> None:
    together = sampler().episodes(model, PROMPTS, 3, 1)
    alone = [sampler().episodes(model, [one], 3, 1)[0] for one in reversed(PROMPTS)]
    assert together == alone[::-1]
    assert len({tuple(episode.own_ids) for episode in together}) == len(PROMPTS)


def test_a_small_batch_samples_what_a_large_one_does(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampler().episodes(model, PROMPTS, 0, 2)
    monkeypatch.setattr(rollouts, "_BATCH_TOKENS", 50)
    assert sampler().episodes(model, PROMPTS, 0, 2) == whole


def test_members_of_a_group_and_iterations_differ(model: Any) -> None:
    first, second = sampler().episodes(model, PROMPTS[:1], 0, 2)
    later = sampler().episodes(model, PROMPTS[:1], 1, 1)[0]
    other_seed = sampler(seed=1).episodes(model, PROMPTS[:1], 0, 1)[0]
    answers = [tuple(e.own_ids) for e in (first, second, later, other_seed)]
    assert len(set(answers)) == 4
    assert first.prompt_ids == second.prompt_ids
    assert first.forced_ids == second.forced_ids


def test_near_temperature_zero_the_likeliest_tokens_are_written(model: Any) -> None:
    one = prompt(5, 9, forced=2)
    (episode,) = sampler(temperature=1e-6).episodes(model, [one], 0, 1)
    ids = torch.tensor([episode.ids])
    likeliest = model(input_ids=ids).logits[0].argmax(dim=-1).tolist()
    assert likeliest[10 : len(episode.ids) - 1] == episode.own_ids


def test_tokens_are_drawn_with_their_probabilities() -> None:
    shares = torch.tensor([0.5, 0.0, 0.3, 0.2])
    rows = 20_000
    numbers = torch.rand(rows, 1, generator=torch.Generator().manual_seed(0)).double()
    chooser = rollouts._token_chooser(numbers, temperature=2.0)
    # At temperature 2, logits of twice the logarithm give these probabilities.
    scores = (2 * shares.log())[None].expand(rows, 4)
    chosen = chooser(torch.zeros(rows, 1), scores)
    assert (chosen.isfinite().sum(dim=1) == 1).all()
    counts = Counter(chosen.argmax(dim=1).tolist())
    found = [counts[token] / rows for token in range(4)]
    assert found == pytest.approx(shares.tolist(), abs=0.015)
    assert counts[1] == 0


def test_an_answer_ends_at_its_end_its_budget_or_the_longest_row(model: Any) -> None:
    common = Counter(
        token
        for episode in sampler().episodes(model, PROMPTS, 0, 8)
        for token in episode.own_ids[:-1]
    )
    end = common.most_common(1)[0][0]
    episodes = sampler(end_ids=(end,)).episodes(model, PROMPTS, 0, 8)
    assert {episode.ended for episode in episodes} == {True, False}
    for episode in episodes:
        assert episode.ended == (episode.own_ids[-1] == end)
        assert end not in episode.own_ids[:-1]
        assert episode.ended or len(episode.own_ids) == 12

    short = sampler(max_length=13, end_ids=(10_000,))
    for episode in short.episodes(model, PROMPTS, 0, 1):
        assert len(episode.ids) == 13
        assert not episode.ended


def test_settings_of_the_base_do_not_change_the_sampling(model: Any) -> None:
    plain = sampler().episodes(model, PROMPTS, 0, 1)
    model.generation_config.repetition_penalty = 5.0
    assert sampler().episodes(model, PROMPTS, 0, 1) == plain
    assert model.generation_config.repetition_penalty == 5.0
    model.generation_config.repetition_penalty = None


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_each_epoch_has_every_row_once(rows: int, prompts: int, seed: int) -> None:
    schedule = PromptSchedule(rows, prompts, epochs=3, seed=seed)
    assert schedule.iterations == max(1, 3 * rows // prompts)
    found = []
    for iteration in range(3 * rows // prompts):
        positions = schedule.positions(iteration)
        assert len(positions) == len(set(positions)) == prompts
        found += positions
    assert len(set(found)) == len(found)
    for epoch in range(len(found) // rows):
        assert sorted(row for e, row in found if e == epoch) == list(range(rows))


ROWS = [
    {"id": f"row{n}", "prompt_ids": [5, 6, n], "chosen_ids": [*range(20, 21 + n), END]}
    for n in range(9)
]


def test_forced_tokens_begin_the_chosen_answer_and_never_end_it() -> None:
    schedule = PromptSchedule(len(ROWS), prompts=6, epochs=50, seed=0)
    lengths = Counter()
    for iteration in range(schedule.iterations):
        for one in prompts_of(iteration, schedule, ROWS, reset=1.0):
            row = next(row for row in ROWS if row["id"] == one.id)
            forced = one.forced_ids
            assert forced == row["chosen_ids"][: len(forced)]
            assert 1 <= len(forced) < len(row["chosen_ids"])
            assert one.context == [*row["prompt_ids"], *forced]
            lengths[len(forced)] += 1
    assert set(lengths) == set(range(1, 10))


def test_a_share_of_resets_changes_neither_prompts_nor_the_sampling(model: Any) -> None:
    schedule = PromptSchedule(len(ROWS), prompts=9, epochs=1, seed=0)
    none, half, all_ = (prompts_of(0, schedule, ROWS, r) for r in (0, 0.5, 1))
    assert [p.draw for p in none] == [p.draw for p in half] == [p.draw for p in all_]
    assert not any(p.forced_ids for p in none) and all(p.forced_ids for p in all_)
    for one, other in zip(half, all_, strict=True):
        assert one.forced_ids in ([], other.forced_ids)
    same = [n for n, one in enumerate(half) if not one.forced_ids]
    assert 0 < len(same) < 9
    first, second = (sampler().episodes(model, p, 0, 1) for p in (none, half))
    for position in same:
        assert first[position] == second[position]


def test_a_row_that_comes_twice_in_an_iteration_is_sampled_anew(model: Any) -> None:
    schedule = PromptSchedule(rows=2, prompts=6, epochs=3, seed=0)
    prompts = prompts_of(0, schedule, ROWS[:2], reset=0.0)
    episodes = sampler().episodes(model, prompts, 0, 1)
    assert len({(e.id, tuple(e.own_ids)) for e in episodes}) == 6
