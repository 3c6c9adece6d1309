"""esbflow doctor --board: what a board's image, its overlay and its memory do, one check after the other. NumPy only."""

import os
import time
from pathlib import Path

import numpy as np

from esbflow.commands.connect import serial_transport
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import activation_masters, weight_masters
from esbflow.engines import engine
from esbflow.handoff import check_overlay
from esbflow.registers import COUNTERS, REGISTERS
from esbflow.runtime.engine import Engine

PATTERNS = (0x0000_0000, 0xFFFF_FFFF, 0xA5A5_5A5A, 0x0123_4567)
BEATS = tuple(name for name, _ in COUNTERS if name.endswith("_beats"))
NEEDED_CMA = 64 << 20


def system() -> list:
    """Root, XRT and contiguous memory of the Linux image."""
    free = next((int(line.split()[1]) << 10 for line in _lines("/proc/meminfo") if line.startswith("CmaFree")), None)
    root, xrt = os.geteuid() == 0, os.environ.get("XILINX_XRT")
    return [
        _entry("root", root, "PYNQ maps /dev/mem", "run with sudo -E, as Jupyter on the image does"),
        _entry("XRT", bool(xrt), "PYNQ allocates memory through it", "source /etc/profile.d/xrt_setup.sh and pynq_venv.sh"),
        _entry("contiguous memory", free is not None and free >= NEEDED_CMA,
               "unknown" if free is None else f"{free >> 20} MiB free", "give the kernel more with cma=256M"),
    ]


def _lines(path: str) -> list:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _entry(check: str, ok: bool, needed: str, fix: str = "") -> dict:
    return {"check": check, "ok": bool(ok), "needed": needed, "fix": "" if ok else fix}


def check_engine(transport, config: EngineConfig) -> list:
    """Registers, a small network, the cache, the interrupt, each port's beats. Stops at what breaks the rest.

    Raises nothing of its own: what the driver raises becomes an entry.
    """
    results = []
    for step in (_registers, _network):
        try:
            results += step(transport, config)
        except (RuntimeError, OSError, MemoryError) as error:
            results.append(_entry(step.__name__.strip("_"), False, str(error), "docs/driver.md says what helps"))
        if not results[-1]["ok"]:
            break
    return results


def _registers(transport, config) -> list:
    driver = Engine(transport)  # ID and interface version
    offset = REGISTERS["SCRATCH"].offset
    wrong = [pattern for pattern in PATTERNS if transport.write(offset, pattern) or transport.read(offset) != pattern]
    return [_entry("ID and version", True, "the engine answers"),
            _entry("scratch register", not wrong,
                   f"reads back wrong: {wrong[0]:#x}" if wrong else f"{len(PATTERNS)} patterns",
                   "the register port's width or clock is wrong; load the overlay again"),
            _entry("configuration", driver.hash == config.hash, f"{driver.hash:016x}",
                   f"the overlay holds another engine than {config.name}; load all files of one build")]


class _Watched:
    """A transport that can forget the input's flush, and notes what interrupts do."""

    def __init__(self, transport):
        self._transport = transport
        self.buffers, self.forget, self.waits, self.woken = [], False, 0, 0
        self.read, self.write = transport.read, transport.write

    def allocate(self, size):
        buffer = self._transport.allocate(size)
        self.buffers.append(buffer)
        flush = buffer.flush
        buffer.flush = lambda: None if self.forget else flush()
        return buffer

    def wait_for_interrupt(self, seconds):
        self.waits += 1
        began = time.monotonic()
        waited = self._transport.wait_for_interrupt(seconds)
        self.woken += bool(waited) and time.monotonic() - began < seconds
        return waited


def _network(transport, config) -> list:
    from esbflow.compiler.pipeline import compile_graph
    from esbflow.graph.execute import execute

    graph = small_network()
    watched = _Watched(transport)
    driver = Engine(watched)
    driver.load(compile_graph(graph, config))
    random = np.random.default_rng(0)
    first, second = (random.integers(0, 256, (1, *graph.input.shape), dtype=np.uint8) for _ in range(2))
    result = driver.run(first)
    right = (result.outputs == execute(graph, first)).all()
    entries = [_entry("memory and array", right, f"{result.outputs.size} values of a small network",
                      "if a second run is right, the ports' widths or the caches are not set up: check the .hwh")]
    counters = driver.counters()
    watched.forget = True
    stale = driver.run(second).outputs
    watched.forget = False
    if (stale == execute(graph, first)).all():
        cache, ok = "not coherent: flush and invalidate are needed, and the driver does them", True
    else:
        ok = bool((stale == execute(graph, second)).all())
        cache = "coherent, or not cached" if ok else "neither the old nor the new image arrived"
    entries += [_entry("a flush left out", ok, cache, "allocate the buffers as the driver does; see docs/hardware.md"),
                _entry("interrupt", True, f"woke the driver {watched.woken} of {watched.waits} times" if watched.woken else
                       "no interrupt came: the driver polls, which costs the processor's time")]
    entries += [_entry(name.replace("_", " "), counters[name] > 0,
                       f"{16 * counters[name] / max(1, counters['cycles']):.2f} bytes a cycle in the small network",
                       "this memory port moved nothing") for name in BEATS]
    driver.unload()
    return entries


def small_network():
    """Two convolutions that use every port: weights, activations both ways, program."""
    from esbflow.graph import ir
    from esbflow.numbers import ESB, Signed, Unsigned

    random, channels, size = np.random.default_rng(1), 8, 12
    values = np.array([-8, -4, -2, -1, 0, 1, 2, 4, 8])

    def layer(name, source):
        rule = ir.Requantizer(m=random.integers(20, 60, channels), b=random.integers(-200, 200, channels),
                              s=np.full(channels, 9), n=np.zeros(channels, dtype=np.int64))
        return ir.Conv2d(name, (source,), (channels, size, size), Unsigned(4), 1.0, weight_format=ESB(4, 1),
                         weight=random.choice(values, (channels, channels, 3, 3)), weight_scale=np.ones(channels),
                         padding=(1, 1), requantizer=rule)

    table = np.tile(np.arange(256) // 2 - 64, (channels, 1))
    source = ir.Input("image", (), (channels, size, size), Signed(8), 1.0, table=table)
    return ir.Graph("doctor", [source, layer("first", "image"), layer("second", "first")])


def check_port_widths(bit) -> list:
    """The widths of the memory ports in the .hwh: PYNQ sets the ports by them, and a wrong one scrambles every beat."""
    from esbflow import handoff

    config, found = engine(str(Path(bit).with_suffix(".json"))), handoff.read(Path(bit).with_suffix(".hwh"))
    wanted = {"m_axi_program", *weight_masters(config), *activation_masters(config)}
    widths = set(found.port_bits.values())
    return [_entry("memory ports", {master for master, _ in found.memory} == wanted and len(widths) == 1,
                   f"{', '.join(f'{master} at {port}' for master, port in found.memory)}; {sorted(widths)} bits",
                   "the .hwh has no memory port for one of the engine's masters, or ports of different widths")]


def power_sensors() -> list:
    """The rails that esbflow.runtime.power can measure; a board without them is none the worse."""
    from esbflow.runtime.errors import SensorsMissing
    from esbflow.runtime.power import board_rails

    try:
        return [_entry("power sensors", True, ", ".join(board_rails()))]
    except SensorsMissing:
        return [_entry("power sensors", True, "none that PYNQ knows: docs/pynq_image.md says how to name them")]


def run(overlay: str | None, port: str | None, name: str = "tiny4x4") -> list:
    """All checks of a board: one with an overlay and PYNQ, or one at a serial port.

    Parameters
    ----------
    overlay : a .bit with .hwh and .json beside it, or None.
    port : the serial port, or "simulated"; then the engine behind it is to be `name`, or that of an engine.json.

    Raises
    ------
    esbflow.handoff.HandoffError, esbflow.runtime.errors.RuntimeFault
        if the overlay's files or the link are so wrong that nothing can be asked.
    """
    if port:
        config = engine(name)
        transport = serial_transport(config, port)
        info = transport.info
        return [_entry("bridge", True, f"{info['memory_bytes'] >> 10} KiB, {info['clock_hz'] / 1e6:g} MHz"),
                *check_engine(transport, config)]
    check_overlay(overlay)
    from esbflow.runtime import pynq_driver

    results = [*system(), *power_sensors(), *check_port_widths(overlay)]
    driver = pynq_driver.open_engine(overlay)
    return results + check_engine(driver.engine.transport, engine(str(Path(overlay).with_suffix(".json"))))
