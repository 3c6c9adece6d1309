"""Ctrl-C and `kill`: exit code 130 (143), nothing half-written, and no process left behind."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from esbflow import children
from esbflow.engines import ENGINES
from esbflow.graph.file import save
from esbflow.graph.random import random_graph, random_images
from esbsim.engine import engine_library

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
WAIT = 300


def alive(pids) -> list:
    """Those that still run."""
    found = []
    for pid in pids:
        try:
            state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def working_in(folder) -> list:
    """Processes whose current folder lies there."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def until(holds, what):
    limit = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


@pytest.fixture
def started():
    """Starts the command line in a process of its own, which takes SIGINT whatever the shell around the tests does."""
    processes = []

    def start(arguments, cwd, **environment):
        program = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL); from esbflow.cli import main; "
                   "sys.exit(main())")
        processes.append(subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], cwd=cwd, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment}))
        return processes[-1]
    yield start
    for process in processes:
        process.kill()
        process.communicate()


VIVADO = """#!/bin/sh
# Has a child, as Vivado's runs are, that knows nothing of signals.
{trap}
sleep 1000 &
echo $$ $! > {pids}.part
mv {pids}.part {pids}
wait
sleep 1000
"""


@pytest.mark.parametrize("number, status, trap", [(signal.SIGINT, 130, ""), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, ""),
                                                  (signal.SIGINT, 130, "trap '' TERM INT")], ids=str)
def test_a_build_that_is_stopped_publishes_nothing_and_leaves_no_tool_running(started, tmp_path, number, status, trap):
    pids, program = tmp_path / "pids", tmp_path / "bin" / "vivado"
    program.parent.mkdir()
    program.write_text(VIVADO.format(pids=pids, trap=trap))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    earlier = tmp_path / "bitstreams" / "zcu102" / "tiny4x4" / "tiny4x4.bit"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("of an earlier build")
    process = started(["bitstream", "--board", "zcu102", "--engine", "tiny4x4"], tmp_path, PATH=f"{program.parent}:{os.environ['PATH']}")
    until(lambda: pids.exists() or process.poll() is not None, "the tool never began")
    tools = [int(pid) for pid in pids.read_text().split()]
    assert len(alive(tools)) == 2
    process.send_signal(number)  # to this process alone: a terminal would send it to the tools as well
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode == status, said
    assert alive(tools) == []
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == ("esbflow bitstream: interrupted; the tools were ended and nothing was published. Their files so "
                                         "far are in build/bitstream/zcu102/tiny4x4")
    assert "Traceback" not in said
    assert earlier.read_text() == "of an earlier build" and sorted(p.name for p in earlier.parent.parent.iterdir()) == ["tiny4x4"]


BEGINS = """
import os, signal, subprocess, sys
from esbflow import children
signal.signal(signal.SIGINT, signal.default_int_handler)
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        os.kill(os.getpid(), {number})
        print(self.pid, flush=True)  # Popen is not over yet
subprocess.Popen = Popen
children.run(["sleep", "1000"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
def test_a_signal_while_a_command_is_begun_ends_the_command(number):
    done = subprocess.run([sys.executable, "-c", BEGINS.format(number=int(number))], capture_output=True, text=True, timeout=WAIT)
    assert done.stdout.strip().isdigit(), "the signal came through at once"
    assert alive([int(done.stdout)]) == [] and done.returncode in (-number, 128 + number), done.stderr


@pytest.fixture
def model(tmp_path):
    """(graph.npz, images.npz) of a small network."""
    random = np.random.default_rng(2)
    graph = random_graph(random, layers=2, channels=6, size=8, kinds=("conv",))
    save(graph, tmp_path / "graph.npz")
    np.savez(tmp_path / "images.npz", images=random_images(random, graph, 4000))
    return tmp_path / "graph.npz", tmp_path / "images.npz"


def test_a_run_that_is_stopped_while_its_simulator_is_built_keeps_no_part_of_it(started, tmp_path, model):
    graph, images = model
    cache = tmp_path / "cache"
    process = started(["run", graph, "--data", images, "--engine", "tiny4x4", "--backend", "rtl"], tmp_path, ESBFLOW_CACHE=str(cache))
    until(lambda: working_in(cache) or process.poll() is not None, "no tool ever began")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT)
    assert (process.returncode, said.splitlines()[-1]) == (130, "interrupted")
    assert working_in(cache) == [] and not list(cache.glob("building-*")) and not list(cache.glob("*.so"))


def test_a_demo_that_is_stopped_does_not_wait_for_the_hardware_beside_its_training(started, tmp_path):
    cache = tmp_path / "cache"
    process = started(["demo", "--engine", "tiny4x4", "--out", "demo"], tmp_path, ESBFLOW_CACHE=str(cache), ESBFLOW_DATA="")
    until(lambda: process.poll() is not None or len(working_in(tmp_path)) > 1, "no tool ever began")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 130, said
    assert working_in(tmp_path) == [] and not list(cache.glob("building-*"))


def test_a_run_that_is_stopped_writes_no_outputs(started, tmp_path, model):
    engine_library(ENGINES["tiny4x4"])  # the run finds it
    graph, images = model
    process = started(["run", graph, "--data", images, "--images", 4000, "--engine", "tiny4x4", "--backend", "rtl", "--outputs",
                       "outputs.npy"], tmp_path)
    until(lambda: process.poll() is not None or "/esb_engine-" in Path("/proc", str(process.pid), "maps").read_text(), "the run never began")
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT)
    assert (process.returncode, said.splitlines()[-1]) == (130, "interrupted")
    assert not list(tmp_path.glob("outputs*"))


def test_a_training_that_is_stopped_says_how_to_go_on(started, tmp_path):
    process = started(["train", "digits", "--out", "out", "--epochs", "500", "--images", "200"], tmp_path, ESBFLOW_DATA="")
    until(lambda: list((tmp_path / "out").glob("*.ckpt")) or process.poll() is not None, "no epoch was done")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 130 and "go on with the same command and --resume" in said.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".ckpt"] == []


# -- child processes ----------------------------------------------------------------------------------------------------
def test_a_command_says_what_it_said():
    result = children.run(["sh", "-c", "cat; echo more; echo wrong >&2; exit 3"], given="input ", together=False)
    assert (result.returncode, result.stdout, result.stderr) == (3, "input more\n", "wrong\n")
    assert children.run(["sh", "-c", "echo a; echo b >&2"]).stdout == "a\nb\n"
    assert children.run(["cat"]).stdout == ""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_commands_of_other_threads_are_ended_with_the_block(tmp_path):
    """Also those of pools in the pool; and no other begins after them."""
    command, begun = ["sh", "-c", "sleep 1000 & echo $! > pid; wait"], threading.Event()

    def in_a_pool_of_its_own():
        with children.pool(1) as inner:
            return inner.submit(children.run, command, tmp_path).result()

    def later():
        begun.set()
        until(lambda: alive([pid]) == [], "it was never ended")
        return children.run(["touch", tmp_path / "late"])

    with pytest.raises(ZeroDivisionError), children.pool(2) as pool:
        first = pool.submit(in_a_pool_of_its_own)
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "it never began")
        pid = int((tmp_path / "pid").read_text())
        second, third = pool.submit(later), pool.submit(children.run, ["touch", tmp_path / "late"])
        assert begun.wait(WAIT)
        raise ZeroDivisionError
    assert first.result(0).returncode == -signal.SIGTERM and third.cancelled() and alive([pid]) == []
    assert isinstance(second.exception(0), children.Stopped) and not (tmp_path / "late").exists()
    with children.pool(1) as pool:
        assert pool.submit(children.run, ["echo", "works"]).result().stdout == "works\n"


def test_a_handler_of_the_program_s_own_stays():
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        children.run(["true"])
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
