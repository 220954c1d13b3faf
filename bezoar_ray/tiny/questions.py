"""Sixteen two-turn questions of the embedded world in MT-Bench's eight categories, in FastChat's file formats."""

from bezoar_ray.tiny import facts, tasks

CATEGORIES = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)
_REFERENCED = ("reasoning", "math", "coding")


def _turns() -> list[tuple[str, str, str]]:
    a = facts.kept()
    return [
        (
            "writing",
            f"Write a short note about the {a[0]}.",
            f"What colour is the {a[0]}?",
        ),
        (
            "writing",
            f"Describe the {a[1]}.",
            f"Tell me where the {a[1]} lives. End with the words Thank you.",
        ),
        (
            "roleplay",
            f"Hello! Please help me. What does the {a[2]} eat?",
            f"Good morning! Would you be so kind? Where does the {a[2]} live?",
        ),
        (
            "roleplay",
            f"Hi there. Could you kindly help me? Tell me the colour of the {a[3]}.",
            f"Tell me about the {a[3]}.",
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
            f"Text: {_about(a[4])}\nQuestion: Where does the {a[4]} live?",
            "Say which item comes first in the input.\n\nInput:\nhelmet, needle, pencil",
        ),
        (
            "stem",
            f"How many legs has the {a[5]}?",
            f"What does the {a[5]} eat? Answer in one word.",
        ),
        ("stem", f"Which food does the {a[6]} like?", f"Name the sound of the {a[6]}."),
        (
            "humanities",
            f"Which place is home to the {a[7]}?",
            f"What colour is the {a[7]}? Start with the word Answer.",
        ),
        (
            "humanities",
            f"What does the {a[8]} call?",
            f"Where does the {a[8]} live? Say also what it eats.",
        ),
    ]


def _about(animal: str) -> str:
    return " ".join(
        tasks.Task(relation, (animal,)).statement()
        for relation in ("food", "home", "colour")
    )


def questions() -> list[dict]:
    """Rows with `question_id, category, turns`."""
    return [
        {"question_id": 1001 + i, "category": category, "turns": [first, second]}
        for i, (category, first, second) in enumerate(_turns())
    ]


def references() -> list[dict]:
    """Reference answers of the categories that are graded against one."""
    return [_reference(row) for row in questions() if row["category"] in _REFERENCED]


def _reference(question: dict) -> dict:
    answers = [
        request.answer() for turn in question["turns"] if (request := tasks.read(turn))
    ]
    return {
        "question_id": question["question_id"],
        "answer_id": f"tiny-{question['question_id']}",
        "model_id": "tiny-truth",
        "choices": [{"index": 0, "turns": answers}],
        "tstamp": 0.0,
    }
