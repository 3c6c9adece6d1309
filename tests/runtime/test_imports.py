"""The driver runs on a board: NumPy and the standard library only."""

import subprocess
import sys

import pytest

BOARD_MODULES = ("engine", "errors", "layout", "program_file", "transport")


@pytest.mark.parametrize("extra, forbidden", [
    ((), ("torch", "amaranth", "pynq", "esbflow.compiler", "esbhw", "esbsim")),
    (("pynq_driver",), ("torch", "amaranth", "esbflow.compiler", "esbhw", "esbsim")),
])
def test_the_runtime_imports_nothing_heavy(extra, forbidden):
    imports = "; ".join(f"import esbflow.runtime.{name}" for name in BOARD_MODULES + extra)
    code = f"{imports}; import sys; print([name for name in {forbidden!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")
