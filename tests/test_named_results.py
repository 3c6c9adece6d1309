"""A public function says what it returns: a named type, or a tuple of which the parts are known."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for part in ("sw/esbflow", "hw/esbhw", "sim/esbsim") for path in (ROOT / part).rglob("*.py"))


def bare_tuples(body: list, within: str = "") -> list:
    """Names of public functions and methods whose return annotation has a `tuple` without parameters."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            found += bare_tuples(node.body, f"{within}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None and bare(node.returns):
            found.append(within + node.name)
    return found


def bare(annotation: ast.expr) -> bool:
    """Whether the annotation, or one of its alternatives, is `tuple` alone, written as a string or not."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return bare(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp):
        return bare(annotation.left) or bare(annotation.right)
    return isinstance(annotation, ast.Name) and annotation.id == "tuple"


def test_the_search_finds_bare_tuples_only():
    source = ("def a() -> tuple: ...\ndef b() -> 'tuple | None': ...\ndef c() -> tuple[int, ...]: ...\ndef _d() -> tuple: ...\n"
              "class E:\n    def f(self) -> None | tuple: ...\n    def g(self, x: tuple): ...\n"
              "    def h(self) -> list[tuple]: ...\nclass _I:\n    def j(self) -> tuple: ...\n")
    assert bare_tuples(ast.parse(source).body) == ["a", "b", "E.f"]


def test_no_public_function_returns_a_bare_tuple():
    assert len(SOURCES) > 200
    assert {str(path): found for path in SOURCES if (found := bare_tuples(ast.parse(path.read_text()).body))} == {}
