"""Outside the simulator: Amaranth toplevel -> Verilog as `esbflow rtl` writes it -> Icarus -> a bench's tests.

Builds are kept under build/benches by the RTL's hash, so that a second run only simulates.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import shutil
from pathlib import Path

from amaranth.back import rtlil
from cocotb_tools.runner import get_results, get_runner

from esbflow.engine_config import EngineConfig
from esbhw import to_verilog

ROOT = Path(__file__).resolve().parents[2]
BUILDS = ROOT / "build" / "benches"
TOP = "dut"


def build(name: str, toplevel, ports=None, beside: str = "") -> Path:
    """Compile `toplevel` for Icarus once; returns the folder. `ports` as amaranth.back.rtlil takes them.

    `beside` is Verilog of modules that the toplevel instantiates.
    """
    text = to_verilog.verilog(rtlil.convert(toplevel, name=TOP, ports=ports, emit_src=False), TOP) + beside
    folder = BUILDS / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    with _locked(folder):
        if not (folder / "sim.vvp").exists():
            source = folder / "dut.v"
            source.write_text(text)
            _runner().build(sources=[source], hdl_toplevel=TOP, build_dir=folder, timescale=("1ns", "1ps"),
                            log_file=folder / "build.log")
    return folder


def run(bench: str, folder: Path, config: EngineConfig | None = None, only: str | None = None, **parameters) -> None:
    """Run the tests of sim/benches/<bench>.py on a build.

    Parameters
    ----------
    config : given to the bench as `testbench.config()`.  only : the name of a single test.
    parameters : JSON values, given to the bench as `testbench.parameters()`.

    Raises
    ------
    AssertionError
        with the end of the simulator's log, if a test failed or none ran.
    """
    log = folder / f"{bench}.log"
    results = folder / f"{bench}.results.xml"
    environment = {"BENCH_PARAMETERS": json.dumps(parameters), "COCOTB_LOG_LEVEL": "WARNING"}
    if config is not None:
        environment["BENCH_CONFIG"] = json.dumps(config.to_dict())
    with _locked(folder):
        with contextlib.suppress(SystemExit):
            _runner().test(
                test_module=f"sim.benches.{bench}", hdl_toplevel=TOP, hdl_toplevel_lang="verilog", build_dir=folder,
                extra_env=environment, results_xml=str(results), log_file=log, testcase=only, seed=1)
        try:
            ran, failed = get_results(results)
        except RuntimeError as error:
            raise AssertionError(f"{bench} ended early: {error}\n{_end_of(log)}") from None
    assert ran > 0, f"{bench} has no test named {only}" if only else f"{bench} has no tests"
    assert failed == 0, f"{failed} of {ran} tests failed\n{_end_of(log)}"


def _end_of(log: Path) -> str:
    """What a failure printed, without what the simulator interface says about itself."""
    return "\n".join(line for line in log.read_text().splitlines() if " gpi " not in line)[-6000:]


def _runner():
    if shutil.which("iverilog") is None:
        raise FileNotFoundError("the benches run on Icarus Verilog: install the package iverilog")
    logging.getLogger("Icarus").setLevel(logging.ERROR)
    return get_runner("icarus")


@contextlib.contextmanager
def _locked(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
