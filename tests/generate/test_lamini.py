import asyncio
from dataclasses import replace

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.generate import lamini
from bezoar_ray.llm.chat import PromptTooLong, Reply
from bezoar_ray.recipe import Lamini

PART = Lamini(calls=10, per_call=4, topic_guided=0.3)


def plan(*args):
    return list(lamini.plan("lamini", *args))


def rows(task, chat, part=PART):
    async def collect():
        return [sample async for sample in lamini.run(task, chat, part)]

    return sorted(asyncio.run(collect()), key=lambda sample: sample.instruction)


def test_calls_are_drawn_alike_for_the_same_seed_and_differ_for_another(seeds):
    tasks = plan(PART, 0, seeds)
    assert tasks == plan(PART, 0, seeds)
    assert {task.id for task in tasks}.isdisjoint(
        task.id for task in plan(PART, 1, seeds)
    )
    assert len({task.id for task in tasks}) == 10


def test_the_share_of_topic_guided_calls_is_met(seeds):
    draws = [task.draw for task in plan(PART, 0, seeds)]
    guided = [draw for draw in draws if draw["generator"] == "topic_guided"]
    assert len(guided) == 3
    assert all(len(set(draw["topics"])) == 3 for draw in guided)
    assert all(draw["topics"] == [] for draw in draws if draw not in guided)


def test_examples_are_three_seeds_that_stand_alone(seeds):
    leaning = [replace(seed, id=f"{seed.id}-input", input="a text") for seed in seeds]
    for task in plan(PART, 0, [*seeds, *leaning]):
        assert len({seed.id for seed in task.seeds}) == 3
        assert not any(seed.input for seed in task.seeds)


def test_each_instruction_gets_its_own_answer_and_an_empty_slot_is_a_failed_row(
    seeds, chat
):
    def answer(step, messages):
        made = "<example>Do A</example> chatter <example> Do B\nwell </example><example></example><example>cut"
        return made if step == "instructions" else f"done: {messages[-1]['content']}"

    task = plan(PART, 0, seeds)[0]
    talk = chat(answer)
    found = rows(task, talk)
    assert [(s.instruction, s.status, s.reason) for s in found] == [
        ("", "failed", "missing"),
        ("", "failed", "missing"),
        ("Do A", "generated", ""),
        ("Do B\nwell", "generated", ""),
    ]
    assert found[2].response == "done: Do A"
    assert (found[2].finish_reason, found[2].tokens_in, found[2].tokens_out) == (
        "stop",
        10,
        5,
    )
    assert found[2].seed_licenses == ["CC0"] * 3
    assert found[2].operation == task.draw["generator"]
    assert (
        len(found[2].prompt_hash) == 16 and found[2].prompt_hash != found[3].prompt_hash
    )
    assert set(talk.asked) == {"instructions", "answer/0", "answer/1"}
    assert all(
        f"<example>{seed.instruction}</example>"
        in talk.asked["instructions"][0]["content"]
        for seed in task.seeds
    )


def test_more_instructions_than_asked_for_are_not_paid_for(seeds, chat):
    made = "".join(f"<example>Do {n}</example>" for n in range(9))
    talk = chat(lambda step, _: made if step == "instructions" else "done")
    assert [s.instruction for s in rows(plan(PART, 0, seeds)[0], talk)] == [
        "Do 0",
        "Do 1",
        "Do 2",
        "Do 3",
    ]


def test_ids_do_not_depend_on_what_the_teacher_says(seeds, chat):
    task = plan(PART, 0, seeds)[0]
    said = ["<example>A</example>" * 4, "<example>B</example>", None]
    ids = [
        {
            s.id
            for s in rows(
                task,
                chat(lambda step, _, one=one: one if step == "instructions" else "x"),
            )
        }
        for one in said
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == 4


def test_a_failed_call_fails_its_own_rows_only(seeds, chat):
    task, made = (
        plan(PART, 0, seeds)[0],
        "<example>A</example><example>B</example><example>C</example><example>D</example>",
    )
    found = rows(
        task,
        chat(
            lambda step, _: (
                made if step == "instructions" else None if step == "answer/1" else "x"
            )
        ),
    )
    assert [
        (s.instruction, s.status, s.reason) for s in found if s.status == "failed"
    ] == [("B", "failed", "call: refused")]
    assert {s.reason for s in rows(task, chat(lambda *_: None))} == {"call: refused"}


def test_a_truncated_answer_keeps_its_finish_reason(seeds, chat):
    cut = Reply("half an ans", "length", 10, 512)
    found = rows(
        plan(PART, 0, seeds)[0],
        chat(lambda step, _: "<example>A</example>" if step == "instructions" else cut),
    )
    assert found[-1].finish_reason == "length"


def test_the_packaged_topics_are_many_short_and_distinct():
    topics = lamini.read_topics(PART)
    assert len(topics) >= 200
    assert len({topic.lower() for topic in topics}) == len(topics)
    assert all(len(topic.split()) <= 3 for topic in topics)


def test_topics_come_from_a_file_if_one_is_named(tmp_path):
    path = tmp_path / "topics.txt"
    path.write_text("Apples\n\nPears\nApples\nPlums\n")
    assert lamini.read_topics(Lamini(topics=str(path))) == ["Apples", "Pears", "Plums"]
    with pytest.raises(
        RecipeError,
        match=r"generate\.lamini\.topics: .* has 3 topics, fewer than topics_per_call \(4\)",
    ):
        lamini.read_topics(Lamini(topics=str(path), topics_per_call=4))
    with pytest.raises(RecipeError, match=r"generate\.lamini\.topics: cannot read"):
        lamini.read_topics(Lamini(topics=str(tmp_path / "none")))


def test_examples_are_dropped_where_they_leave_no_room_and_one_that_is_too_long_alone_fails(
    seeds, chat
):
    def room_for(count):
        def answer(step, messages):
            if (
                step == "instructions"
                and messages[-1]["content"].count("</example>") - 1 > count
            ):  # one names the tag
                raise PromptTooLong("prompt of 3000 tokens in a context of 2048")
            return "<example>Do A</example>" if step == "instructions" else "done"

        return answer

    task = plan(PART, 0, seeds)[0]
    assert [s.instruction for s in rows(task, chat(room_for(2)))] == [
        "",
        "",
        "",
        "Do A",
    ]
    assert [s.instruction for s in rows(task, chat(room_for(1)))] == [
        "",
        "",
        "",
        "Do A",
    ]
    assert {s.reason for s in rows(task, chat(room_for(0)))} == {
        "call: prompt of 3000 tokens in a context of 2048"
    }


LISTS = {
    "open tags": "<example>Do A\n<example>Do B\n<example>Do C",
    "numbers": "Here are three:\n\n1. Do A\n2. Do B\n3) Do C",
    "bullets": "- Do A\n* Do B\n• Do C",
    "labels": "**Instruction 1:** Do A\n\n**Instruction 2:** Do B\n\n**Instruction 3:** Do C",
    "bold": "1. **Do A**\n2. **Do B**\n3. **Do C**",
}


@pytest.mark.parametrize("reply", LISTS.values(), ids=LISTS)
def test_instructions_are_read_as_small_models_write_them(reply):
    assert lamini.read_instructions(reply) == ["Do A", "Do B", "Do C"]
    assert lamini.read_instructions(reply, cut_off=True) == ["Do A", "Do B"]


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("<example>1. Do A</example><example>2. Do B</example>", ["Do A", "Do B"]),
        ("<Example>Do A</Example>", ["Do A"]),
        ("1. Do:\n- this\n- that\n2. Do B", ["Do:\n- this\n- that", "Do B"]),
        ("Of course! Write a poem about the sea.", []),
        ("1. A single line may be an answer.", []),
        ("", []),
        ("I cannot do that. Reasons:\n- it is wrong\n- it is bad", []),
        ("1. Do A\n2. Do B\n\nLet me know if you need more!", ["Do A", "Do B"]),
        ("<example>Do A\n<example>Do B\n\nBye!", ["Do A", "Do B"]),
        (
            "1. Translate it.\nExample: I am glad.\n2. Shorten it.",
            ["Translate it.\nExample: I am glad.", "Shorten it."],
        ),
        ("<example>(5) + 3 = ?</example>", ["(5) + 3 = ?"]),
        ("<example>{1: 'a'} is a dict. Why?</example>", ["{1: 'a'} is a dict. Why?"]),
        ("<example>What does (a|b)* match?</example>", ["What does (a|b)* match?"]),
        ("<example>*args and **kwargs</example>", ["*args and **kwargs"]),
        ("<example>**Bold** and **more**</example>", ["**Bold** and **more**"]),
        ("<example>24. Dezember: what is it?</example>", ["24. Dezember: what is it?"]),
        ("<example>Do A</Example >", ["Do A"]),
    ],
)
def test_what_is_no_list_of_instructions_gives_none(reply, found):
    assert lamini.read_instructions(reply) == found


def test_a_reply_without_an_instruction_is_kept_with_its_missing_rows(seeds, chat):
    task = plan(PART, 0, seeds)[0]
    found = rows(task, chat(lambda step, messages: "Of course!"))
    assert [(sample.reason, sample.response) for sample in found] == [
        ("missing", "Of course!")
    ] * 4
