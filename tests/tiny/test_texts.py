"""Seeds, held-out items and questions: their shapes, and what stands in which text."""

import json
import random
from itertools import islice

from bezoar_ray.tiny import (
    build,
    exam,
    facts,
    lessons,
    prose,
    questions,
    seeds,
    tasks,
    tokens,
)
from bezoar_ray.tiny.truth import truth


def test_the_same_texts_are_written_every_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build.write_texts(tmp_path / name, tmp_path / "final")
    files = sorted(
        p.relative_to(tmp_path / "a")
        for p in (tmp_path / "a").rglob("*")
        if p.is_file()
    )
    assert len(files) == 9
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes()
        for f in files
    )
    assert list(islice(build.base_texts(), 50)) == list(islice(build.base_texts(), 50))
    assert list(islice(build.teacher_texts(), 50)) == list(
        islice(build.teacher_texts(), 50)
    )


def test_seeds_have_the_fields_of_their_data_sets():
    assert all(
        set(row) == {"instruction", "context", "response", "category"}
        for row in seeds.dolly()
    )
    assert len(seeds.dolly()) >= 300 and any(row["context"] for row in seeds.dolly())
    assert {row["task_source"] for row in seeds.flan()} == {
        "CoT",
        "NIV2",
        "Flan2021",
        "T0",
    }
    assert {row["template_type"] for row in seeds.flan()} == {"zs_opt", "zs_noopt"}
    assert len(seeds.flan()) >= 300 and all(row["targets"] for row in seeds.flan())


def test_seed_answers_are_true():
    for row in seeds.dolly():
        task = (
            f"{row['instruction']}\n\nInput:\n{row['context']}"
            if row["context"]
            else row["instruction"]
        )
        assert truth(task, row["response"]) is True
    assert all(
        tasks.read(row["inputs"]).tasks[0].value == row["targets"]
        for row in seeds.flan()
    )


def test_pairs_share_their_conversation_and_differ_in_the_last_answer():
    rows = seeds.hh_rlhf()
    assert len(rows) >= 600 and any(
        row["chosen"].count("\n\nHuman: ") > 1 for row in rows
    )
    for row in rows:
        chosen, rejected = (
            row[side].rpartition("\n\nAssistant: ") for side in ("chosen", "rejected")
        )
        assert chosen[0] == rejected[0] and chosen[2] != rejected[2]


def test_held_out_items_stand_in_no_text_that_teaches():
    items = [row["instruction"] for row in (*exam.choice_items(), *exam.answer_items())]
    assert len(exam.choice_items()) >= 200 and len(exam.answer_items()) >= 200
    rng = random.Random("teacher")
    lines = [
        message["content"] + answer
        for messages, answer in (lessons.lesson(rng) for _ in range(8000))
        for message in messages
    ]
    lines += [
        json.dumps(row, ensure_ascii=False)
        for row in (*seeds.dolly(), *seeds.flan(), *seeds.hh_rlhf())
    ]
    rng = random.Random("base")
    text = "\n".join(lines) + "\n".join(prose.document(rng) for _ in range(30000))
    assert [item for item in items if item in text] == []


def test_the_facts_that_items_ask_for_stand_in_the_plain_text():
    rng = random.Random("base")
    text = "\n".join(prose.document(rng) for _ in range(30000)).lower()
    asked = [
        tasks.read(row["instruction"]).tasks[0]
        for row in (*exam.choice_items(), *exam.answer_items())
    ]
    told = [task for task in asked if task.kind in facts.RELATIONS]
    assert len(told) > 200 and all(
        task.args[0] in facts.held_out_animals() for task in told
    )
    assert sum(task.statement().lower() in text for task in told) >= 0.8 * len(told)


def test_base_reads_no_instructions_and_no_prompts():
    rng = random.Random("base")
    text = "\n".join(prose.document(rng) for _ in range(5000))
    assert "?" not in text and "### Instruction" not in text and "Assistant" not in text


def test_only_a_part_of_all_instructions_is_taught():
    rng = random.Random(1)
    drawn = [lessons._seen(rng).text for _ in range(300)]
    assert all(map(lessons.is_taught, drawn))
    rng = random.Random(2)
    free = [build.lessons.draws.instruction(rng).text for _ in range(2000)]
    assert 0.1 < sum(map(lessons.is_taught, free)) / len(free) < 0.3


def test_most_instructions_stand_nowhere_in_the_teachers_text():
    text = "\n".join(
        f"{prompt}\n{answer}"
        for prompt, answer in islice(build.teacher_texts(), 21_000)
    )
    rng = random.Random(2)
    free = [lessons.draws.instruction(rng).text for _ in range(1000)]
    assert sum(instruction not in text for instruction in free) > 0.65 * len(free)


def test_questions_have_references_where_mt_bench_has_them():
    rows, references = (
        questions.questions(),
        {row["question_id"]: row for row in questions.references()},
    )
    assert [row["category"] for row in rows] == [
        name for name in questions.CATEGORIES for _ in range(2)
    ]
    assert all(
        len(row["turns"]) == 2 and all(tasks.read(turn) for turn in row["turns"])
        for row in rows
    )
    for row in rows:
        assert (row["question_id"] in references) == (
            row["category"] in ("reasoning", "math", "coding")
        )
    for question in rows:
        for turn, told in zip(
            question["turns"],
            references.get(question["question_id"], {"choices": [{"turns": []}]})[
                "choices"
            ][0]["turns"],
            strict=False,
        ):
            assert truth(turn, told) is True


def test_the_tokenizer_gives_every_text_back():
    tokenizer = tokens.train(islice(build.tokenizer_texts(), 3000))
    for text in (
        "The zorbel eats figs.\n| a | b |",
        "Ünïcödé – 東京 🙂",
        exam.prompt("What is 3 + 4?"),
        "  two  spaces ",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (
        tokenizer.encode("x")[0] != tokenizer.bos_token_id
        and tokenizer.encode("x")[-1] != tokenizer.eos_token_id
    )
