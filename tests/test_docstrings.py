"""Every public name says what it is. Ruff holds modules, classes and functions to it, and the form of each docstring; here are
methods, which need none where the method that they override has one. A component is read from its `elaborate`: what that calls
fits a screen and says what it does."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("sw/esbflow", "hw/esbhw", "sim/esbsim")
OF_LIBRARIES = {"elaborate", "forward", "extra_repr"}
"""What Amaranth and torch call: the class says what the component or module does."""
SCREEN = 60
"""Lines."""


def classes() -> dict:
    """{name: (file, its node, names of its bases)} of the classes of all modules."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    bases = [base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases]
                    found[node.name] = path, node, bases
    return found


def documented(name: str, method: str, known: dict) -> bool:
    """Whether a class or one of its bases documents a method."""
    _, node, bases = known[name]
    own = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == method), None)
    return (own is not None and ast.get_docstring(own) is not None) or any(
        documented(base, method, known) for base in bases if base in known and base != name)


def undocumented(known: dict) -> list:
    """CLASS.METHOD of each public method without a docstring of its own or of what it overrides."""
    protocols = {part.name for _, node, bases in known.values() if "Protocol" in bases for part in node.body
                 if isinstance(part, ast.FunctionDef) and ast.get_docstring(part)}
    return [f"{path.relative_to(ROOT)}: {name}.{part.name}" for name, (path, node, _) in known.items()
            if not name.startswith("_") for part in node.body
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
            and part.name not in OF_LIBRARIES | protocols and not documented(name, part.name, known)]


def test_every_public_method_is_documented():
    known = classes()
    assert len(known) > 200 and documented("Unsigned", "min", known)  # by Format
    assert not undocumented(known)


def unreadable(source: str) -> list:
    """Of a module of hw/: functions longer than a screen, and methods of components without a docstring."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= SCREEN:
            found.append(f"{node.name} is longer than {SCREEN} lines")
        if isinstance(node, ast.ClassDef) and any(getattr(part, "name", "") == "elaborate" for part in node.body):
            found += [f"{node.name}.{part.name} does not say what it does" for part in node.body
                      if isinstance(part, ast.FunctionDef) and part.name not in ("__init__", "elaborate")
                      and not ast.get_docstring(part)]
    return found


def test_components_are_read_from_their_elaborate():
    long = "    def elaborate(self, platform):\n" + "        pass\n" * SCREEN
    assert unreadable(f"class A:\n{long}    def _part(self, m):\n        pass\n") == [
        "A._part does not say what it does", "elaborate is longer than 60 lines"]
    modules = sorted((ROOT / "hw").rglob("*.py"))
    assert len(modules) > 60
    assert {str(path): found for path in modules if (found := unreadable(path.read_text()))} == {}
