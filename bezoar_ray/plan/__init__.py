"""What a recipe will call, cost and take, before anything runs; and again from what a pilot measured.

Everything that the recipe does not say is an assumption with a name, and is printed beside the numbers.
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
