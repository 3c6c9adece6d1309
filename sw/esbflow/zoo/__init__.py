"""Trained integer graphs that ship with esbflow: NAME.npz, the graph, and NAME.json, how it came about and how good it is.

Commands that take a graph take `zoo:NAME` too. An entry is added by `python -m esbflow.zoo NAME FOLDER RECORD`, FOLDER being
what `esbflow train` wrote and RECORD what its --results wrote.
"""

import json
import shutil
from pathlib import Path

from esbflow.errors import BadValue
from esbflow.suggest import nearest

FOLDER = Path(__file__).parent
PREFIX = "zoo:"


def entries() -> dict:
    """{name: record} of all models, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def graph_path(name: str) -> Path:
    """The graph's file.

    Raises
    ------
    ValueError
        if there is no such model, naming those there are.
    """
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        raise BadValue(f"the zoo has no model {name!r}; it has {', '.join(entries()) or 'none'}"
                       f"{nearest(name, entries())}")
    return path


def resolve(name) -> Path:
    """`zoo:NAME` -> the path of that model; any other path as it is."""
    text = str(name)
    return graph_path(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else Path(name)


def add(name: str, folder: Path, record: Path) -> None:
    """Take a trained graph into the zoo."""
    shutil.copyfile(folder / "graph.npz", FOLDER / f"{name}.npz")
    shutil.copyfile(record, FOLDER / f"{name}.json")
