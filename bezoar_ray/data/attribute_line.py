"""The attribute line of SteerLM: the ratings that an answer has or should have.

A steered model reads the line in the system message. It learns from rated answers with
their own ratings (SteerLM 1, arXiv 2310.05344), and later gets a goal in the same form.
"""

import math
import random
from collections.abc import Sequence

from bezoar_ray.data.schema import ATTRIBUTES, Rating, row_id
from bezoar_ray.recipe.steering import Goal


def attribute_line(goal: Goal) -> str:
    """Return a goal as text, such as `helpfulness:4,verbosity:2`.

    The attributes are in the order of `ATTRIBUTES`, whatever the order of the goal.
    """
    return ",".join(f"{name}:{goal[name]}" for name in ATTRIBUTES if name in goal)


def rated_goal(rating: Rating) -> Goal:
    """Return the ratings of an answer as the goal that it reaches.

    Ratings between two whole numbers, as they come from other scales than HelpSteer2's,
    are rounded half up. Missing ones are left out.
    """
    goal: Goal = {}
    for name, value in zip(ATTRIBUTES, rating.ratings, strict=True):
        if value is not None:
            # round() would take 0.5 to 0, but 1.5 to 2.
            goal[name] = math.floor(value + 0.5)
    return goal


def add_goal(messages: Sequence[dict[str, str]], goal: Goal) -> list[dict[str, str]]:
    """Return a conversation whose system message states a goal.

    A system message that the conversation already has comes before the line.
    """
    line = attribute_line(goal)
    if messages and messages[0]["role"] == "system":
        content = f"{messages[0]['content']}\n\n{line}"
        return [{"role": "system", "content": content}, *messages[1:]]
    return [{"role": "system", "content": line}, *messages]


def draw_goal(goals: Sequence[Goal], seed: int, purpose: str, prompt_id: str) -> Goal:
    """Draw the goal of a prompt, each with the same probability.

    The draw depends on the arguments alone: a killed run draws the same goals again,
    and other prompts do not matter.

    Args:
        goals: the recipe's goals. One that occurs twice is drawn twice as often.
        seed: of the recipe.
        purpose: what the goal is for, so that draws for other purposes differ.
        prompt_id: id of the prompt's row.
    """
    return random.Random(row_id(seed, purpose, prompt_id)).choice(goals)
