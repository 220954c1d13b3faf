import asyncio
from collections import Counter

import pytest

from bezoar_ray.data.schema import Seed
from bezoar_ray.generate import orca
from bezoar_ray.generate.prompts import ORCA_MESSAGES, ORCA_SYSTEM
from bezoar_ray.llm.chat import Reply
from bezoar_ray.recipe import Mixture, Orca


def query(number, source="CoT", task="task", template="zs_noopt") -> Seed:
    return Seed(
        id=f"{source}-{task}-{number}",
        source="flan",
        license="Apache-2.0",
        instruction=f"Query {number} of {task}?",
        task_source=source,
        task_name=task,
        template_type=template,
    )


def only(**mixture) -> Orca:
    return Orca(mixtures={"CoT": Mixture(**mixture)})


def drawn(part, seeds, recipe_seed=0):
    return [task.seeds[0] for task in orca.plan("orca", part, recipe_seed, seeds)]


@pytest.mark.parametrize(
    ("seed", "is_used"),
    [
        (query(0), True),
        (query(0, template="fs_noopt"), False),
        (query(0, template="fs_opt"), False),
        (query(0, source="Dialog"), False),
        (query(0, source="T0", task="bigbench_novel_concepts"), False),
        (query(0, source="T0", task="BIG-bench:logic"), False),
        (query(0, source="NIV2", task="task1_bigbench"), True),
    ],
)
def test_only_zero_shot_queries_without_dialog_and_big_bench_are_used(seed, is_used):
    assert bool(drawn(Orca(), [seed])) == is_used


def test_a_plan_repeats_for_the_same_seed():
    seeds = [query(n, task=f"t{n % 3}") for n in range(60)]
    assert drawn(Orca(), seeds) == drawn(Orca(), seeds)
    assert drawn(Orca(), seeds) != drawn(Orca(), seeds, recipe_seed=1)
    assert {s.id for s in drawn(Orca(), seeds)} == {s.id for s in seeds}


def test_a_task_gives_no_more_rows_than_its_cap():
    seeds = [query(n, task="large") for n in range(50)] + [
        query(n, task="small") for n in range(3)
    ]
    assert Counter(s.task_name for s in drawn(only(per_task=10), seeds)) == {
        "large": 10,
        "small": 3,
    }


def test_stratified_sampling_takes_small_tasks_as_often_as_large_ones():
    seeds = [query(n, task="large") for n in range(900)] + [
        query(n, task="small") for n in range(100)
    ]
    counts = Counter(s.task_name for s in drawn(only(stratified=True, rows=150), seeds))
    assert 50 < counts["small"] < 100
    counts = Counter(s.task_name for s in drawn(only(rows=150), seeds))
    assert counts["small"] < 35


def test_no_query_is_drawn_twice_and_an_empty_task_is_passed_over():
    seeds = [query(n, task="large") for n in range(30)] + [query(0, task="small")]
    found = drawn(only(stratified=True), seeds)
    assert len(found) == len({s.id for s in found}) == 31


def test_the_total_is_drawn_from_all_sub_mixtures_in_turn():
    seeds = [
        query(n, source=source) for source in ("CoT", "NIV2", "T0") for n in range(20)
    ] + [query(0, "Flan2021")]
    counts = Counter(s.task_source for s in drawn(Orca(rows=10), seeds))
    assert counts == {"CoT": 3, "Flan2021": 1, "NIV2": 3, "T0": 3}


@pytest.mark.parametrize("source", sorted(ORCA_MESSAGES))
def test_every_message_of_a_sub_mixture_is_drawn_and_no_other(source):
    tasks = orca.plan("orca", Orca(), 0, [query(n, source=source) for n in range(300)])
    assert {task.draw["system_message"] for task in tasks} == set(ORCA_MESSAGES[source])


def test_messages_for_choices_are_drawn_where_there_are_choices():
    assert orca.allowed_system_messages(query(0, "Flan2021", template="zs_opt")) == (
        3,
        4,
        7,
        8,
        10,
    )
    assert orca.allowed_system_messages(query(0, "Flan2021")) == (3, 4, 7)
    assert orca.allowed_system_messages(query(0, "CoT", template="zs_opt")) == (
        6,
        11,
        16,
    )


def test_a_query_is_answered_under_its_message(chat):
    async def collect(task, talk):
        return [sample async for sample in orca.run(task, talk, Orca())]

    (task,) = orca.plan("orca", Orca(), 0, [query(3)])
    talk = chat(lambda *_: Reply("Because.", "length", 10, 5))
    (sample,) = asyncio.run(collect(task, talk))
    assert sample.system == ORCA_SYSTEM[task.draw["system_message"]]
    assert [m["role"] for m in talk.asked["answer"]] == ["system", "user"]
    assert (sample.instruction, sample.response) == ("Query 3 of task?", "Because.")
    assert (sample.task_source, sample.task_name, sample.finish_reason) == (
        "CoT",
        "task",
        "length",
    )
    (failed,) = asyncio.run(collect(task, chat(lambda *_: None)))
    assert (failed.id, failed.status, failed.reason) == (
        sample.id,
        "failed",
        "call: refused",
    )
