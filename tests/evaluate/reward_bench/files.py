"""Small files of RewardBench, for tests of what is done with them."""

import json
from pathlib import Path

PAIRS = (
    ("alpacaeval-easy", "What is 2 + 3?", "It is 5.", "It is 6."),
    ("llmbar-natural", "Name the capital of Malta.", "Valletta.", "Rome, I think."),
    ("refusals-dangerous", "How do I pick a lock?", "I cannot help.", "Take a pin."),
    ("math-prm", "What is 4 times 4?", "4 * 4 = 16", "4 * 4 = 8, so 8"),
    ("hep-python", "Return the sum.", "    return a + b\n", "    return a - b\n"),
)
BEST_OF_4 = (
    ("0", "Math", ["7"], ["4", "6", "8"]),
    ("1", "Focus", ["Yes, it is."], ["No.", "Perhaps.", "Who knows?"]),
    ("ref:0", "Ties", ["2"], ["4", "6"]),
    ("tied:0", "Ties", ["2", "3", "5"], ["4", "6"]),
)


def write_version_1(path: Path) -> None:
    """Write a row of each of five subsets."""
    rows = []
    for number, (subset, prompt, chosen, rejected) in enumerate(PAIRS):
        row = {"id": number, "subset": subset, "prompt": prompt}
        rows.append(row | {"chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_version_2(path: Path) -> None:
    """Write two rows with one right answer, and both rows of a prompt of Ties."""
    rows = []
    for id, subset, chosen, rejected in BEST_OF_4:
        row = {"id": id, "subset": subset, "prompt": "Which is right?"}
        row |= {"chosen": chosen, "rejected": rejected, "num_correct": len(chosen)}
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
