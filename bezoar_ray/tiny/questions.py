"""Sixteen questions of the embedded world, in MT-Bench's categories and file formats.

Each has two turns. The animals in them are held out.
"""

from typing import Any

from bezoar_ray.tiny import facts, tasks

Row = dict[str, Any]

CATEGORIES = facts.words(
    "writing roleplay reasoning math coding extraction stem humanities"
)
_WITH_REFERENCES = ("reasoning", "math", "coding")
_FIRST_ID = 1001  # apart from MT-Bench's own, 81 to 160


def _turns() -> list[tuple[str, str, str]]:
    """Return category, first turn and second turn of each question."""
    animals = facts.held_out_animals()
    passage = tasks.about_animal(animals[4], ("food", "home", "colour"))
    return [
        (
            "writing",
            f"Write a short note about the {animals[0]}.",
            f"What colour is the {animals[0]}?",
        ),
        (
            "writing",
            f"Describe the {animals[1]}.",
            f"Tell me where the {animals[1]} lives. End with the words Thank you.",
        ),
        (
            "roleplay",
            f"Hello! Please help me. What does the {animals[2]} eat?",
            f"Good morning! Would you be so kind? Where does the {animals[2]} live?",
        ),
        (
            "roleplay",
            f"Hi there. Could you kindly help me? Tell me the colour of the {animals[3]}.",
            f"Tell me about the {animals[3]}.",
        ),
        (
            "reasoning",
            "Which number is larger, 17 or 9? Explain your answer step by step.",
            "Which number is larger, 6 or 11?",
        ),
        (
            "reasoning",
            "Which item comes first: lamp, rope, bell, cup?",
            "Which item comes last: lamp, rope, bell, cup?",
        ),
        ("math", "What is 7 + 3?", "What is 11 - 4?"),
        (
            "math",
            "Tam has 6 coins and finds 5 more. How many coins does Tam have now?",
            "Add 8 and 4. Explain your answer step by step.",
        ),
        (
            "coding",
            "Reverse this list: key, stone, kite.",
            "Count the items of this list: key, stone, kite.",
        ),
        (
            "coding",
            "Definition: You are given a list of items. Write the items backwards.\n\nInput: cup, hat, drum\nOutput:",
            "Turn this list around: bell, coin, door.",
        ),
        (
            "extraction",
            "Name the first item of this list: boat, glove, flute, table.",
            "Name the last item of this list: boat, glove, flute, table. Answer in one word.",
        ),
        (
            "extraction",
            f"Text: {passage}\nQuestion: Where does the {animals[4]} live?",
            "Say which item comes first in the input.\n\nInput:\nhelmet, needle, pencil",
        ),
        (
            "stem",
            f"How many legs has the {animals[5]}?",
            f"What does the {animals[5]} eat? Answer in one word.",
        ),
        (
            "stem",
            f"Which food does the {animals[6]} like?",
            f"Name the sound of the {animals[6]}.",
        ),
        (
            "humanities",
            f"Which place is home to the {animals[7]}?",
            f"What colour is the {animals[7]}? Start with the word Answer.",
        ),
        (
            "humanities",
            f"What does the {animals[8]} call?",
            f"Where does the {animals[8]} live? Say also what it eats.",
        ),
    ]


def questions() -> list[Row]:
    """Return rows with `question_id, category, turns`."""
    return [
        {"question_id": number, "category": category, "turns": [first, second]}
        for number, (category, first, second) in enumerate(_turns(), _FIRST_ID)
    ]


def references() -> list[Row]:
    """Return reference answers of the categories that are graded against one."""
    return [
        _reference(question)
        for question in questions()
        if question["category"] in _WITH_REFERENCES
    ]


def _reference(question: Row) -> Row:
    requests = [tasks.read(turn) for turn in question["turns"]]
    answers = [request.answer() for request in requests if request]
    return {
        "question_id": question["question_id"],
        "answer_id": f"tiny-{question['question_id']}",
        "model_id": "tiny-truth",
        "choices": [{"index": 0, "turns": answers}],
        "tstamp": 0.0,
    }
