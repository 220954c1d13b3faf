import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from bezoar_ray.generate import evol_instruct
from bezoar_ray.generate.elimination import answer_fault, instruction_fault
from bezoar_ray.llm.chat import Reply
from bezoar_ray.recipe import EvolInstruct

PART = EvolInstruct(seeds=5, epochs=3)


def plan(*args):
    return list(evol_instruct.plan("evol_instruct", *args))


def rows(task, chat, part=PART):
    async def collect():
        return [sample async for sample in evol_instruct.run(task, chat, part)]

    return asyncio.run(collect())


def script(**said):
    """Answers by the step's name; `evolve` grows the prompt's instruction by its epoch."""

    def answer(step, messages):
        name, _, epoch = step.partition("/")
        if step in said or name in said:
            return said.get(step, said.get(name))
        return {
            "evolve": f"Task of epoch {epoch}",
            "adds_nothing": "Not equal",
            "answer": "Forty-two.",
        }[name]

    return answer


def test_seeds_are_drawn_and_all_are_taken_where_there_are_fewer(seeds):
    tasks = plan(PART, 0, seeds)
    assert len({task.seeds[0].id for task in tasks}) == 5
    assert tasks == plan(PART, 0, seeds)
    assert len(plan(EvolInstruct(seeds=600), 0, seeds)) == 20


def test_each_epoch_evolves_what_the_one_before_made(seeds, chat):
    talk = chat(script())
    found = rows(plan(PART, 0, seeds)[0], talk)
    assert [(s.round, s.instruction, s.response, s.status) for s in found] == [
        (n, f"Task of epoch {n}", "Forty-two.", "generated") for n in (1, 2, 3)
    ]
    assert "Task of epoch 1" in talk.asked["evolve/2"][0]["content"]
    assert len({s.id for s in found}) == 3


def test_the_seeds_input_is_part_of_what_is_evolved(seeds, chat):
    talk = chat(script())
    rows(plan(PART, 0, [replace(seeds[0], input="a | b")])[0], talk)
    assert (
        f"{seeds[0].instruction}\n\nInput:\na | b"
        in talk.asked["evolve/1"][0]["content"]
    )


def test_operations_are_drawn_by_weight_and_alike_in_a_rerun(seeds, chat):
    part = EvolInstruct(
        seeds=20, epochs=30, operations={"deepen": 3, "breadth": 1, "reasoning": 0}
    )
    tasks = plan(part, 0, seeds)
    drawn = [[s.operation for s in rows(task, chat(script()), part)] for task in tasks]
    assert drawn == [
        [s.operation for s in rows(task, chat(script()), part)] for task in tasks
    ]
    counts = Counter(operation for operations in drawn for operation in operations)
    assert set(counts) == {"deepen", "breadth"}
    assert 2 < counts["deepen"] / counts["breadth"] < 4


@pytest.mark.parametrize(
    ("said", "reason", "unpaid"),
    [
        ({"evolve/2": ""}, "empty", "adds_nothing/2"),
        ({"evolve/2": "#Rewritten Prompt#: Task"}, "scaffolding", "adds_nothing/2"),
        ({"evolve/2": "Task of epoch 1"}, "adds_nothing", "adds_nothing/2"),
        (
            {"evolve/2": Reply("Task of ep", "length", 10, 512)},
            "truncated",
            "adds_nothing/2",
        ),
        ({"adds_nothing/2": "Equal."}, "adds_nothing", "answer/2"),
        ({"answer/2": "Sorry, that is beyond me."}, "sorry", None),
        ({"answer/2": "..."}, "stop_words", None),
    ],
)
def test_an_eliminated_evolution_is_rejected_and_its_parent_goes_on(
    seeds, chat, said, reason, unpaid
):
    talk = chat(script(**said))
    found = rows(plan(PART, 0, seeds)[0], talk)
    assert [(s.status, s.reason) for s in found] == [
        ("generated", ""),
        ("rejected", reason),
        ("generated", ""),
    ]
    assert "Task of epoch 1" in talk.asked["evolve/3"][0]["content"]
    assert unpaid not in talk.asked


@pytest.mark.parametrize("step", ["evolve/2", "adds_nothing/2", "answer/2"])
def test_a_failed_call_fails_its_row_and_the_parent_goes_on(seeds, chat, step):
    found = rows(plan(PART, 0, seeds)[0], chat(script(**{step: None})))
    assert [s.status for s in found] == ["generated", "failed", "generated"]
    assert found[1].reason == "call: refused"


def test_ids_do_not_depend_on_what_the_teacher_says(seeds, chat):
    task = plan(PART, 0, seeds)[0]
    good, bad = rows(task, chat(script())), rows(task, chat(script(answer="Sorry.")))
    assert [s.id for s in good] == [s.id for s in bad]


def test_a_long_answer_may_say_sorry():
    assert answer_fault("sorry " * 79) == "sorry"
    assert answer_fault("sorry " * 80) is None


def test_an_answer_needs_more_than_stop_words():
    assert answer_fault("It is, and so on!") == "stop_words"
    assert answer_fault("") == "stop_words"
    assert answer_fault("It is 7.") is None


@pytest.mark.parametrize(
    "text", ["The given prompt asks", "#Created Prompt#: x", "rewritten prompt"]
)
def test_words_of_our_own_prompt_spoil_an_instruction(text):
    assert instruction_fault(text) == "scaffolding"
    assert instruction_fault("Write a prompt reply") is None


@pytest.mark.parametrize(
    "reply",
    [
        "Equal",
        "'Equal'",
        "**Equal**",
        "The two instructions are equal.",
        "They are EQUAL.",
    ],
)
def test_a_comparison_may_come_as_a_sentence(reply):
    assert evol_instruct.says_equal(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "Not equal",
        "not really equal",
        "They aren't equal, as",
        "Unequal",
        "No: the second asks for more.",
        "",
    ],
)
def test_what_is_denied_is_not_equal(reply):
    assert not evol_instruct.says_equal(reply)
