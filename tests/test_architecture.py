"""The layout that docs and CONTRIBUTING promise: imports point down, and a name means one thing."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import bezoar_ray

ROOT = Path(bezoar_ray.__file__).parent
LAYERS = (
    {"cli"},
    {"runs"},
    {"plan"},
    {"report"},
    {"review"},
    {"generate", "filter", "train", "evaluate"},
    {"serve"},
    {"pipeline", "licenses"},
    {"llm", "sources"},
    {"data"},
    {"runtime"},
    {"recipe"},
    {"store"},
    {"stages", "schemes", "stats", "errors"},
    {"layout"},
)
"""From the top down: a layer may import the layers below it. Stages meet in files, and do not import one another."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """All modules by dotted name."""
    return {
        ".".join(
            ("bezoar_ray", *path.relative_to(ROOT).with_suffix("").parts)
        ).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }


def room(module: str) -> str:
    """The folder or module at the top of the package."""
    return (module.split(".") + [""])[1]


def _without_types(tree: ast.Module) -> ast.Module:
    """The tree without the imports that only a type checker sees."""
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    return tree


def imports() -> Iterator[tuple[str, str]]:
    """Each module, and each module or name that it imports, also inside functions."""
    for name, path in modules().items():
        for node in ast.walk(_without_types(ast.parse(path.read_text()))):
            if isinstance(node, ast.ImportFrom) and node.module == "bezoar_ray":
                yield from ((name, f"bezoar_ray.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "bezoar_ray."
            ):
                yield name, node.module


def test_every_room_has_its_layer():
    rooms = {room(name) for name in modules()} - {"", "tiny", "__main__"}
    assert rooms == set(RANK)


def test_no_import_goes_up():
    wrong = []
    for name, imported in imports():
        upper, lower = room(name), room(imported)
        if upper not in RANK or lower not in RANK or upper == lower:
            continue
        if RANK[lower] <= RANK[upper]:
            wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_only_a_run_resolves_the_embedded_world():
    """The other modules find its files through `runtime.embedded_world`."""
    users = {
        name
        for name, imported in imports()
        if room(imported) == "tiny" and room(name) != "tiny"
    }
    assert users == {"bezoar_ray.runs.orchestrator"}
    orchestrator = modules()["bezoar_ray.runs.orchestrator"].read_text()
    assert orchestrator.count("tiny.resolve(") == 1


def test_the_embedded_judge_is_named_by_the_recipe_and_its_own_room_only():
    users = [
        name
        for name, path in modules().items()
        if room(name) != "tiny" and "tiny-judge" in path.read_text()
    ]
    assert users == []


def test_no_module_name_occurs_twice_but_stage():
    found = defaultdict(list)
    for name in modules():
        found[name.rpartition(".")[2]].append(name)
    assert {
        name: where
        for name, where in found.items()
        if len(where) > 1 and name != "stage"
    } == {}


def test_no_class_name_occurs_twice():
    found = defaultdict(list)
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    assert {name: where for name, where in found.items() if len(where) > 1} == {}
