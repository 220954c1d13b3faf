"""The grammar of the embedded world: whatever is asked in its words can be read back and judged."""

import random

from bezoar_ray.tiny import draws, lessons, seeds, tasks
from bezoar_ray.tiny.truth import truth


def _asked(rng):
    asked = draws.instruction(rng)
    for _ in range(rng.randrange(3)):
        asked = draws.evolve(rng, rng.choice(draws.OPERATIONS), asked)
    return asked


def test_every_instruction_is_read_back_as_it_was_meant():
    rng = random.Random(0)
    for _ in range(2000):
        asked = _asked(rng)
        assert tasks.read(asked.text) == asked.request


def test_queries_of_every_sub_mixture_are_read_back():
    rng = random.Random(0)
    for source in ("CoT", "NIV2", "Flan2021", "T0"):
        for _ in range(100):
            _, asked = seeds.query(rng, source)
            assert tasks.read(asked.text) == asked.request


def test_right_answers_are_true_and_wrong_values_are_not():
    rng = random.Random(0)
    for _ in range(1000):
        asked, explain = _asked(rng), rng.random() < 0.5
        assert truth(asked.text, asked.request.answer(explain=explain)) is True
        values = tuple(lessons.wrong(rng, task) for task in asked.request.tasks)
        pairs = [
            (v, t)
            for v, t in zip(values, asked.request.tasks, strict=True)
            if t.kind != "note"
        ]
        if any(value != task.value for value, task in pairs):
            assert truth(asked.text, asked.request.answer(values, explain)) is False


def test_a_text_from_elsewhere_has_no_truth_here():
    assert (
        truth("What type of persimmon can be eaten raw?", "The astringent one.") is None
    )
    assert truth("What does the unicorn eat?", "The unicorn eats figs.") is None


def test_broken_form_is_not_true():
    asked = "What is 3 + 4? End with the words Thank you."
    assert truth(asked, "3 + 4 = 7. Thank you.") is True
    assert truth(asked, "3 + 4 = 7.") is False
    assert truth("What is 3 + 4?", "3 + 4 = 7. 2 + 2 = 5.") is False
    assert truth("What is 3 + 4?", "") is False
