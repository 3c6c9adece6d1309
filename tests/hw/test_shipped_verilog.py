"""engine.v as `esbflow rtl` writes it: plain Verilog for every reader, and right whatever its registers start with.

test_engine_bench.py runs the same file in a four-state simulator.
"""

import re
import subprocess

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.runtime.engine import Engine
from esbhw import generate, to_verilog
from esbsim import toolchain
from esbsim.build import build
from esbsim.simulator import MemoryTiming, Simulator
from esbsim.transport import SimulatedTransport, memory
from sim.benches.engine_host import small_graph

CONFIG = ENGINES["tiny4x4"]
LATENCY = 40


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The file's path."""
    return generate.write(CONFIG, tmp_path_factory.mktemp("engine"), "generic")[0]


def test_every_process_has_a_clock(shipped):
    text = shipped.read_text()
    starts = re.findall(r"\balways\S*\s*(?:@\s*\([^)]*\)|@\s*\*)?", text)
    assert len(starts) > 100 and all(re.fullmatch(r"always @\(posedge \S+\)", start) for start in starts), set(starts)
    assert not re.findall(r"function .*\\\$", text), "Icarus takes such a name for a system function"


@pytest.mark.parametrize("reader", ["Icarus", "Verilator"])
def test_verilog_2005_is_all_that_a_reader_needs(shipped, reader):
    if reader == "Icarus":
        command, environment = ["iverilog", "-g2005", "-t", "null", "-s", CONFIG.module_name], None
    else:
        binary, root, _ = toolchain.verilator()
        command = [binary, "--lint-only", "-Wno-fatal", "--language", "1364-2005", "--top-module", CONFIG.module_name]
        environment = toolchain.verilator_environment(root)
    result = subprocess.run([*command, str(shipped)], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_no_output_depends_on_what_registers_and_memories_start_with(shipped):
    text, registers = re.subn(r"^(  reg [^=;]*?) = [^;]*;", r"\1;", shipped.read_text(), flags=re.MULTILINE)
    text, memories = re.subn(r"^  initial begin\n.*?^  end\n", "", text, flags=re.MULTILINE | re.DOTALL)
    assert registers > 100 and memories > 5
    library = build(text, CONFIG.module_name, random=True)
    graph = small_graph()
    program = compile_graph(graph, CONFIG)
    images = np.random.default_rng(1).integers(0, 256, (2, *graph.input.shape), dtype=np.uint8)
    for seed in (1, 2, 3):
        driver = Engine(SimulatedTransport(
            Simulator(library, memory(4), timing=MemoryTiming(latency=LATENCY), seed=seed)), watchdog=20_000)
        driver.load(program)
        result = driver.run(images)
        assert (result.outputs == execute(graph, images)).all(), seed
        assert result.cycles == 2 * count_cycles(program, LATENCY).total, seed


def test_what_a_design_sets_stays_and_what_tools_set_goes():
    rtlil = r"""
attribute \generator "Amaranth"
module \top
  wire input 0 \a
  attribute \keep 1
  attribute \src "some.py:1"
  wire output 1 \o
  connect \o \a
end
"""
    text = to_verilog.verilog(rtlil, "top")
    assert "(* keep = " in text and "src" not in text and "generator" not in text


def test_a_text_that_yosys_refuses_gives_its_words():
    with pytest.raises(to_verilog.YosysError, match="Parser error in line 2"):
        to_verilog.verilog("module \\top\n  nonsense\nend\n", "top")
