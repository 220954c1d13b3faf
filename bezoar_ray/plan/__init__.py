"""The plan of a recipe: its calls, cost and GPU hours, before anything runs.

Every number that the recipe does not give is a named assumption, printed beside the
plan. A pilot's measurements can replace assumptions.
"""

from bezoar_ray.plan.assumed import Assumed, Tokens
from bezoar_ray.plan.measured import assumed_from, plan_from
from bezoar_ray.plan.scaling import Scaling, scaling
from bezoar_ray.plan.steps import Plan, Step, plan
from bezoar_ray.plan.text import render, render_scaling

__all__ = [
    "Assumed",
    "Plan",
    "Scaling",
    "Step",
    "Tokens",
    "assumed_from",
    "plan",
    "plan_from",
    "render",
    "render_scaling",
    "scaling",
]
