"""The wheel, installed beside NumPy alone as on a board's image: driver, compiler, recordings and the command line.

ESBFLOW_BOARD_PYTHON may name another Python that has NumPy, as 3.10 of PYNQ's images; without it this one stands for it.
"""

import ast
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BOARD_PYTHON = os.environ.get("ESBFLOW_BOARD_PYTHON", sys.executable)
BOARD_PACKAGES = ("", "runtime", "compiler", "graph", "zoo")


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The Python of an environment with NumPy and the wheel."""
    folder = tmp_path_factory.mktemp("board")
    for maker, *arguments in ((sys.executable, "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT),
                              (BOARD_PYTHON, "venv", "--without-pip", folder / "venv")):
        made = run(maker, "-m", *arguments)
        assert made.returncode == 0, made.stderr
    python = folder / "venv" / "bin" / "python"
    wheel, = folder.glob("esbflow-*.whl")
    made = run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert made.returncode == 0, made.stderr
    site, = (folder / "venv" / "lib").glob("python*/site-packages")
    packages = Path(run(BOARD_PYTHON, "-c", "import numpy; print(numpy.__file__)").stdout.strip()).parents[1]
    for name in ("numpy", "numpy.libs"):  # and nothing else of that environment
        source = packages / name
        if source.exists():
            (site / name).symlink_to(source)
    return python


def run(python, *arguments, **options):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([str(python), *map(str, arguments)], capture_output=True, text=True, check=False, env=environment, **options)


def test_only_numpy_is_there(board):
    found = run(board, "-c", "import numpy, esbflow; print(esbflow.__file__)")
    assert found.returncode == 0 and "site-packages" in found.stdout, found.stderr
    for name in ("torch", "amaranth", "rich", "pynq"):
        assert run(board, "-c", f"import {name}").returncode != 0


def test_the_driver_compiles_and_runs_a_network_from_a_recording(board, tmp_path):
    script = """
import numpy as np
from esbflow import handoff
from esbflow.commands import doctor_board
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import engine
from esbflow.graph.execute import execute
from esbflow.runtime.serial_transport import SerialTransport
from esbflow.runtime.engine import Engine
from esbflow.runtime.recording import Recorder, Replay
from esbflow.runtime.errors import EngineMissing

graph = doctor_board.small_network()
program = compile_graph(graph, engine("tiny4x4"))
program.save("program.npz")
class Dead:
    def read(self, offset):
        return 0xDEAD
    def write(self, offset, value):
        pass
try:
    Engine(Recorder(Dead(), "dead.jsonl"))
except EngineMissing as error:
    print(error)
try:
    Engine(Replay("dead.jsonl"))
except EngineMissing as error:
    print("again:", error)
print(execute(graph, np.zeros((1, *graph.input.shape), np.uint8)).shape)
"""
    found = run(board, "-W", "error", "-c", script, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    first, again, shape = found.stdout.splitlines()
    assert first.startswith("expected 0x45534246 in the ID register, found 0x0000dead") and again == f"again: {first}"
    assert shape == "(1, 8, 12, 12)" and (tmp_path / "program.npz").exists()


def test_the_command_line_runs_without_the_rest(board, tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 1, 28, 28), np.uint8))
    command = board.with_name("esbflow")
    found = run(command, "run", "zoo:lenet5-esb-w4a4", "--data", tmp_path / "images.npz", "--images", 2, "--json", cwd=tmp_path)
    assert found.returncode == 0 and json.loads(found.stdout)["images"] == 2, found.stderr
    found = run(command, "doctor", "--json", cwd=tmp_path)
    assert found.returncode == 0 and any(c["check"] == "numpy" and c["ok"] for c in json.loads(found.stdout)["checks"])
    for arguments, words in (
            (("doctor", "--board"), "--board needs --overlay FILE.bit on a PYNQ board, or --port PATH"),
            (("doctor", "--board", "--port", "/dev/no-such-port"), "/dev/no-such-port cannot be opened as a serial port"),
            (("run", "zoo:lenet5-esb-w4a4", "--data", tmp_path / "images.npz", "--backend", "board", "--overlay", "x.bit"),
             "not installed")):
        found = run(command, *arguments, cwd=tmp_path)
        assert found.returncode == 2 and words in found.stderr and "Traceback" not in found.stderr, found.stderr


def test_what_a_board_runs_is_python_3_10():
    files = [path for part in BOARD_PACKAGES for path in sorted((ROOT / "sw" / "esbflow" / part).glob("*.py"))]
    assert len(files) > 40
    for path in files:
        ast.parse(path.read_text(), feature_version=(3, 10))
    assert sysconfig.get_python_version() >= "3.10"
