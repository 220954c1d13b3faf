"""What the pages show must be valid."""

import ast
import copy
import re
from pathlib import Path

import pytest
import yaml

from bezoar_ray.recipe import load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def merged(tree: dict, part: dict) -> dict:
    for key, value in part.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = merged(tree[key], value) if both else value
    return tree


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.stem)
def test_the_parts_of_recipes_on_a_page_can_be_read(page):
    whole = load_recipe("modern").model_dump(mode="json")
    parts = [yaml.safe_load(block) for block in blocks(page, "yaml")]
    for part in parts:
        recipe = parse_recipe(merged(copy.deepcopy(whole), part), page.name)
        assert recipe.name == "modern"
    for block in blocks(page, "python"):
        ast.parse(block)


def errors_explained() -> list[str]:
    """The texts in the first column of the page on errors."""
    rows = re.findall(
        r"^\| `(.+?)` \| [^|]+ \| [^|]+ \|$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE
    )
    return [text.strip("` ") for text in rows]


def test_every_error_that_is_explained_is_one_that_the_code_raises():
    """A text may stand in several literals that follow one another, or hold what differs between braces."""
    code = "".join(path.read_text() for path in sorted((ROOT / "bezoar_ray").rglob("*.py")))
    joined = re.sub(r"['\"]\s*\n\s*(?:f|r)?['\"]", "", code).replace("{{", "{").replace("}}", "}")
    explained = errors_explained()
    assert len(explained) > 40
    assert [text for text in explained if text not in joined] == []
