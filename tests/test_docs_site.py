"""The documentation: its links lead somewhere, its examples are valid, and its reference says what the code says."""

import copy
import importlib.util
import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from bezoar_ray import cli, layout
from bezoar_ray.llm.ledger import ROLES
from bezoar_ray.recipe import load_recipe, parse_recipe, recipe_names
from bezoar_ray.stages import STAGES, checkpoint_names

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ALL = [*PAGES, *sorted(ROOT.glob("*.md"))]
_ALONE = {
    "teacher": "teachers",
    "judge": "judges",
}  # sections that may be written without a list


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
    )


def prose(page: Path) -> str:
    """The text of a page without its code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


@cache
def generator() -> ModuleType:
    """docs/generate_reference.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location(
        "generate_reference", DOCS / "generate_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    return {
        generator().anchor(title)
        for title in re.findall(r"^#{1,3} (.+)$", prose(page), re.MULTILINE)
    }


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_link_to_a_file_leads_to_one(page):
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if DOCS in page.parents and path:  # the site holds docs/ alone
            assert DOCS in target.parents, f"{link}: outside of docs/"
        if heading:
            assert heading in anchors(target), f"{link}: no such heading"


def test_every_page_is_in_a_table_of_contents():
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for entries in re.findall(
            r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            names = [
                line
                for line in entries.splitlines()
                if line and not line.startswith(":")
            ]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    assert sorted(set(PAGES) - listed) == []
    assert sorted(listed - set(PAGES)) == []


@pytest.mark.parametrize(
    "page", [page for page in ALL if blocks(page, "yaml")], ids=name_of
)
def test_each_yaml_example_is_a_part_of_a_recipe(page):
    whole = load_recipe("modern").model_dump(mode="json")
    for block in blocks(page, "yaml"):
        part = yaml.safe_load(block)
        recipe = parse_recipe(merged(copy.deepcopy(whole), part), name_of(page))
        assert recipe.name == part.get("name", "modern")


def merged(tree: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    for key, value in part.items():
        tree.pop(_ALONE.get(key, ""), None)
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = merged(tree[key], value) if both else value
    return tree


@pytest.mark.parametrize(
    "page", [page for page in ALL if blocks(page, "python")], ids=name_of
)
def test_each_python_example_compiles(page):
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")


@pytest.mark.parametrize(
    "page", [page for page in ALL if blocks(page, "sh")], ids=name_of
)
def test_each_shell_example_can_be_read_and_its_bezoar_commands_parse(page):
    script = "\n".join(blocks(page, "sh"))
    found = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert found.returncode == 0, found.stderr
    for arguments in commands(script):
        try:
            options = cli._parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"bezoar {shlex.join(arguments)}: not a command")
        if getattr(options, "recipe", None) in recipe_names():
            load_recipe(options.recipe, options.set)


def commands(script: str) -> Iterator[list[str]]:
    """The arguments of each call of `bezoar` in a shell script."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(
            r"\w+=.*", words[0]
        ):  # a variable for this command
            words.pop(0)
        if words[:1] == ["bezoar"]:
            yield [word for word in words[1:] if word not in ("&", "&&")]


def test_the_tables_of_recipes_name_every_packaged_one():
    for page in (ROOT / "README.md", DOCS / "index.md"):
        assert [
            name for name in recipe_names() if f"`{name}`" not in page.read_text()
        ] == []


def test_the_generated_pages_are_up_to_date():
    for name, text in generator().pages().items():
        assert (DOCS / "reference" / name).read_text() == text, (
            f"{name} is out of date: run `make reference`"
        )


@cache
def code() -> str:
    files = [
        path
        for path in sorted((ROOT / "bezoar_ray").rglob("*.py"))
        if "tiny" not in path.parts
    ]
    return "\n".join(path.read_text() for path in files)


def test_each_reason_of_a_rejection_is_one_that_the_code_gives():
    assert [
        name
        for name in generator().REASONS
        if not re.search(rf"[\"']{name}[\"':]", code())
    ] == []


def first_column(page: Path) -> list[str]:
    return re.findall(r"^\| `(.+?)` \|", page.read_text(), re.MULTILINE)


def test_every_file_of_a_run_directory_is_explained():
    page = DOCS / "reference" / "run-directory.md"
    explained = [re.sub(r"<\w+>", "*", path) for path in first_column(page)]
    written = set(layout_paths())
    assert len(written) > 15
    assert [
        path
        for path in sorted(written)
        if not any(explains(one, path) for one in explained)
    ] == []
    assert [stage for stage in STAGES if f"`{stage}`" not in page.read_text()] == []


def layout_paths() -> Iterator[str]:
    """Every path that the layout of a run directory knows, with a star for each name."""
    for name, value in vars(layout).items():
        if name.isupper():
            yield value
        elif (
            inspect.isfunction(value)
            and value.__module__ == layout.__name__
            and name != "checkpoint"
        ):
            yield value(*["*"] * len(inspect.signature(value).parameters))
    for name, value in vars(layout.CheckpointLayout).items():
        if isinstance(value, property):
            yield getattr(layout.checkpoint("*"), name)


def explains(explained: str, written: str) -> bool:
    """Whether an entry of the page is a path that the code writes, lies below it, or is a folder above it. A star
    stands for any name."""
    entry, path = explained.rstrip("/").split("/"), written.rstrip("/").split("/")
    if len(entry) < len(path):
        return explained.endswith("/") and all(map(fnmatchcase, path, entry))
    pairs = zip(entry, path, strict=False)
    return all(
        fnmatchcase(first, second) or fnmatchcase(second, first)
        for first, second in pairs
    )


def test_every_key_of_the_summary_is_one_that_the_code_writes():
    page = DOCS / "reference" / "summary.md"
    keys = {
        key
        for path in first_column(page)
        for key in re.findall(r"(?<![<\w])\w+(?![\w>])", path)
    }
    names = {*ROLES, *checkpoint_names(), *STAGES}
    assert len(keys) > 40
    assert [
        key for key in sorted(keys - names) if not re.search(rf"\b{key}\b", code())
    ] == []
    assert [
        name for name in (*ROLES, *STAGES) if f"`{name}`" not in page.read_text()
    ] == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    from sphinx.cmd.build import main

    assert (
        main(["-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]) == 0
    )
