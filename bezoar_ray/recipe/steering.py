"""What the recipe says of SteerLM, where ratings that a prompt names steer answers."""

from typing import Annotated, Literal

from pydantic import Field

from bezoar_ray.recipe.model_sections import Attribute

Edges = Literal["rounding", "fifths"]
"""How the range of a rating is cut into bins."""

# Strict: otherwise `true` would be 1.
Goal = dict[Attribute, Annotated[int, Field(ge=0, le=4, strict=True)]]
"""A rating for each attribute that a goal names."""
