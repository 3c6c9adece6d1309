"""Where figures in docs/results come from: the command line that made them, and the machine that it ran on."""

import platform
import sys


def command(module: str, arguments: list | None) -> str:
    """The command line that runs a bench again; `arguments` are as its `main` got them, None for those of this process."""
    return " ".join([f"python -m {module}", *(sys.argv[1:] if arguments is None else arguments)])


def machine() -> dict:
    """Fields of a record: the processor's kind and Python's version."""
    return {"machine": platform.machine(), "python": platform.python_version()}
