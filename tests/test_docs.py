"""What the pages show must be valid."""

import ast
import copy
import re
from pathlib import Path

import pytest
import yaml

from bezoar_ray.recipe import load_recipe, parse_recipe

PAGES = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def merged(tree: dict, part: dict) -> dict:
    for key, value in part.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = merged(tree[key], value) if both else value
    return tree


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_parts_of_recipes_on_a_page_can_be_read(page):
    whole = load_recipe("modern").model_dump(mode="json")
    parts = [yaml.safe_load(block) for block in blocks(page, "yaml")]
    assert parts
    for part in parts:
        recipe = parse_recipe(merged(copy.deepcopy(whole), part), page.name)
        assert recipe.name == "modern"
    for block in blocks(page, "python"):
        ast.parse(block)
