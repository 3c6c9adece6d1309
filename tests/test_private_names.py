"""A name with an underscore belongs to its module: no other module reads it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for part in ("sw/esbflow", "hw/esbhw", "sim") for path in (ROOT / part).rglob("*.py"))


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign_private_names(source: str) -> list:
    """What a module reads of others with an underscore in front."""
    tree, modules, found = ast.parse(source), set(), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            ours = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("esbflow", "esbhw", "esbsim", "sim")
            for alias in node.names if ours else ():
                modules.add(alias.asname or alias.name)
                found += [f"{node.module}.{alias.name}"] if private(alias.name) else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules and private(node.attr):
            found.append(f"{node.value.id}.{node.attr}")
    return found


def test_the_search_finds_both_ways():
    source = "from esbflow.training import data\nfrom esbflow.maps import _a, b\ndata._read()\nself._c\nb.__doc__\n"
    assert foreign_private_names(source) == ["esbflow.maps._a", "data._read"]


def test_no_module_reads_what_another_keeps_to_itself():
    assert len(SOURCES) > 200
    assert {str(path): found for path in SOURCES if (found := foreign_private_names(path.read_text()))} == {}
