"""A compiled engine as a Python object: registers, clock cycles, interrupt, memory timing and faults."""

import ctypes
import threading
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from esbflow.errors import BadValue
from esbflow.suggest import no_such

CHANNELS = ("ar", "r", "aw", "w", "b")
RESPONSES = {"slverr": 2, "decerr": 3}
NEVER = 2**64 - 1
ACCESS_LIMIT = 10_000
"""Cycles in which a register access must be answered."""


class SimulationError(RuntimeError):
    """The simulated hardware broke a rule of its bus, or did not answer."""


class ProtocolViolation(SimulationError):
    """An AXI master of the design broke a rule of AXI4; the text says which, where and in which cycle."""


@dataclass(frozen=True)
class MemoryTiming:
    """How the memory behind one port answers; the defaults are the ideal memory of the cycle model.

    Parameters
    ----------
    latency : cycles from the AR handshake to the first beat on offer, at least 1.
    write_latency : cycles from the last W handshake to B on offer; None is `latency`.
    jitter : each burst takes 0..jitter cycles longer, drawn with `seed`; answers stay in order.
    beats_per_cycle : at most 1, for reads and writes each; a Fraction is kept exactly.
    outstanding : bursts that the memory takes before READY falls; 0 is no limit.
    stall : chance that a channel pauses in a cycle: one number, or {channel: chance} with "ar", "r", "aw", "w", "b".
    seed : of jitter and stalls.

    Raises
    ------
    ValueError
        if a value is out of range, naming it.
    """

    latency: int = 40
    write_latency: int | None = None
    jitter: int = 0
    beats_per_cycle: Fraction | float = 1
    outstanding: int = 0
    stall: float | dict = field(default=0.0)
    seed: int = 0

    def __post_init__(self):
        for name in ("latency", "write_latency"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31:
                raise BadValue(f"{name} must be at least 1 cycle, not {value!r}")
        if not 0 < self.beats_per_cycle <= 1:
            raise BadValue(f"beats_per_cycle must be above 0 and at most 1, not {self.beats_per_cycle!r}")
        for name in ("jitter", "outstanding", "seed"):
            if not 0 <= getattr(self, name) < 2**31:
                raise BadValue(f"{name} must not be negative, and below 2**31, not {getattr(self, name)!r}")
        for channel, chance in self.stalls().items():
            if channel not in CHANNELS:
                raise BadValue(f"stall: {no_such('channel', channel, CHANNELS)}")
            if not 0 <= chance < 1:
                raise BadValue(f"stall: the chance on {channel} must be at least 0 and below 1, not {chance!r}")

    def stalls(self) -> dict:
        """{channel: share of cycles in which it stalls}."""
        return self.stall if isinstance(self.stall, dict) else dict.fromkeys(CHANNELS, self.stall)


IDEAL = MemoryTiming()


class Simulator:
    """One simulated engine with its memory.

    The memory is the caller's array, seen by the engine at `base` and above; nothing is copied. All calls run in C++
    without the interpreter's lock; threads wait for each other. Register accesses advance the clock, by the cycles that
    the engine takes to answer.

    Parameters
    ----------
    library : what esbsim.build.build returned.
    memory : contiguous uint8 array.
    base : bus address of memory[0].
    timing : one MemoryTiming for all ports, or {port name: MemoryTiming} (others ideal).
    shared_bytes_per_cycle : what all ports together may move (a DDR controller); None is no limit.
    seed : above 0, and only of use with a library built with random=True: of the values that registers start with.

    Raises
    ------
    TypeError, ValueError
        if the memory is not such an array, or a port name is unknown.
    """

    def __init__(self, library: str | Path, memory: np.ndarray, base: int = 0, timing: MemoryTiming | dict = IDEAL,
                 shared_bytes_per_cycle: float | Fraction | None = None, seed: int = 0):
        if not isinstance(memory, np.ndarray) or memory.dtype != np.uint8 or not memory.flags.c_contiguous:
            raise TypeError("memory must be a contiguous NumPy array of uint8")
        if not memory.flags.writeable:
            raise BadValue("memory must be writeable")
        self._library, self._lock = _load(library), threading.Lock()
        self.memory, self.base = memory, base  # kept: C++ holds a pointer into it
        self._handle = self._library.esb_new(memory.ctypes.data, memory.nbytes, base, seed)
        self.ports = _port_names(self._library)
        timings = timing if isinstance(timing, dict) else dict.fromkeys(self.ports, timing)
        for port in self.ports:
            self.set_timing(port, timings.get(port, IDEAL))
        for port in set(timings) - set(self.ports):
            self._port(port)
        self.set_shared_bandwidth(shared_bytes_per_cycle)
        self.reset()

    def close(self):
        """Ends the simulation and closes its waves; the object is of no use afterwards."""
        if getattr(self, "_handle", None):
            self.trace(None)
            with self._lock:
                handle, self._handle = self._handle, None
                self._library.esb_delete(handle)

    def __del__(self):
        self.close()

    def _call(self, function, *arguments):
        # C++ runs without the interpreter's lock, and has none of its own.
        with self._lock:
            if self._handle is None:
                raise SimulationError("this simulator was closed; on the simulated board: another overlay was loaded")
            return getattr(self._library, function)(self._handle, *arguments)

    # -- clock --------------------------------------------------------------------------------------------
    @property
    def cycles(self) -> int:
        """Rising clock edges since the simulator was made."""
        return self._call("esb_cycles")

    @property
    def interrupt(self) -> bool:
        """Level of the interrupt output after the last edge."""
        return bool(self._call("esb_interrupt"))

    def reset(self, cycles: int = 4):
        """Holds ap_rst_n low; the memory forgets its open bursts, its contents stay."""
        self._call("esb_reset", cycles)

    def run(self, cycles: int) -> int:
        """Advances the clock; returns how many cycles.

        Raises
        ------
        ProtocolViolation
            if a master broke an AXI rule.
        """
        ran = self._call("esb_run", cycles, 0)
        self._check()
        return ran

    def run_until_interrupt(self, max_cycles: int) -> bool:
        """Advances until the interrupt is high, at most `max_cycles`; True if it is. Raises as `run` does."""
        self._call("esb_run", max_cycles, 1)
        self._check()
        return self.interrupt

    def set_clocks(self, bus: int, compute: int, first: int = 0):
        """Periods of ap_clk and compute_clk in one unit of your choice, and the time from now to compute_clk's first edge.

        Equal and in phase at the start. `cycles` and all latencies stay those of ap_clk. No edge may lie further apart than
        its period: call it before what it is to change, and reset the engine, as a board's clocks do not change either.

        Raises
        ------
        BadValue
            if a period is below 1, the first edge lies before now, or the library has one clock.
        """
        if bus < 1 or compute < 1 or first < 0:
            raise BadValue(f"periods must be at least 1 and the first edge not negative, not {bus}, {compute} and {first}")
        if not hasattr(self._library, "esb_set_clocks"):
            raise BadValue("this engine has one clock; build its library with two_clocks=True")
        self._call("esb_set_clocks", bus, compute, first)

    # -- registers ----------------------------------------------------------------------------------------
    def read(self, address: int) -> int:
        """The 32-bit register at a byte address.

        Raises
        ------
        SimulationError
            if it is answered with an error, or not within ACCESS_LIMIT cycles.
        """
        value = ctypes.c_uint32()
        response = self._call("esb_read", address, ctypes.byref(value), ACCESS_LIMIT)
        self._check_access("read", address, response)
        return value.value

    def write(self, address: int, value: int):
        """Writes the 32-bit register at a byte address. Raises as `read` does."""
        if not 0 <= value < 2**32:
            raise BadValue(f"a register value must fit in 32 bits, not {value!r}")
        response = self._call("esb_write", address, value, ACCESS_LIMIT)
        self._check_access("write", address, response)

    def _check_access(self, what, address, response):
        if response:
            why = f"not answered in {ACCESS_LIMIT} cycles" if response < 0 else f"answered with error response {response}"
            raise SimulationError(f"the register {what} at 0x{address:03x} was {why}")
        self._check()

    def _check(self):
        text = self._call("esb_violation")
        if text:
            self._call("esb_clear_violations")
            raise ProtocolViolation(text.decode())

    # -- memory behaviour ---------------------------------------------------------------------------------
    def set_timing(self, port: str, timing: MemoryTiming):
        """Changes how one port's memory answers from now on."""
        rate = Fraction(timing.beats_per_cycle).limit_denominator(1000)
        stalls = timing.stalls()
        chances = (ctypes.c_uint32 * len(CHANNELS))(*(int(stalls.get(c, 0) * 2**32) for c in CHANNELS))
        index = self._port(port)
        self._call("esb_set_timing", index, timing.latency, timing.write_latency or timing.latency, timing.jitter,
            timing.outstanding, rate.numerator, rate.denominator, chances, timing.seed * len(self.ports) + index)

    def set_shared_bandwidth(self, bytes_per_cycle: float | Fraction | None):
        """Limits what all ports together move; None lifts the limit."""
        rate = Fraction(bytes_per_cycle or 0).limit_denominator(1000)
        if bytes_per_cycle is not None and rate <= 0:
            raise BadValue(f"bytes_per_cycle must be at least 1/1000 or None, not {bytes_per_cycle!r}")
        self._call("esb_set_shared", rate.numerator, rate.denominator)

    def set_fault(self, low: int, high: int, response: str = "slverr", port: str | None = None):
        """Bus addresses low <= a < high answer "slverr" or "decerr", on one port or on all (None).

        Addresses outside the memory answer "decerr" always.
        """
        if response not in RESPONSES:
            raise BadValue(f"response must be 'slverr' or 'decerr', not {response!r}")
        self._call("esb_add_fault", self._port(port), low, high, RESPONSES[response])

    def clear_faults(self):
        """Forgets what set_fault and set_wrong_last set."""
        self._call("esb_clear_faults")

    def set_stall(self, port: str | None = None, channels: tuple = CHANNELS, from_cycle: int | None = None):
        """A memory that stops answering: nothing new on these channels from a cycle on (None: now), until released.

        What is already on offer stays on offer, as AXI demands.
        """
        self._stall(port, channels, self.cycles if from_cycle is None else from_cycle)

    def release_stall(self, port: str | None = None, channels: tuple = CHANNELS):
        """Lets a stalled memory answer again."""
        self._stall(port, channels, NEVER)

    def _stall(self, port, channels, cycle):
        mask = sum(1 << CHANNELS.index(channel) for channel in channels)
        self._call("esb_set_stall", self._port(port), mask, cycle)

    def set_wrong_last(self, port: str, bursts_from_now: int = 0, early: bool = False):
        """RLAST is missing from (or, early, set on the first beat of) one of the port's coming read bursts."""
        self._call("esb_wrong_last", self._port(port), bursts_from_now, int(early))

    def statistics(self, port: str) -> dict:
        """Bursts and 16-byte beats that a port has moved since the last reset."""
        counts = (ctypes.c_uint64 * 4)()
        self._call("esb_statistics", self._port(port), counts)
        return dict(zip(("read_bursts", "read_beats", "write_bursts", "write_beats"), counts))

    def _port(self, name):
        if name is None:
            return -1
        if name not in self.ports:
            raise BadValue(no_such("memory port", name, self.ports))
        return self.ports.index(name)

    # -- waves --------------------------------------------------------------------------------------------
    def trace(self, path: str | Path | None, cycles: tuple = (0, None), scopes: tuple = (), clock_mhz: int = 100):
        """Writes waves (VCD) to a file from now on; None ends it.

        Parameters
        ----------
        cycles : (first, last), counted as `cycles` counts them: nothing is written before the first or from the last on;
            None: to the end.
        scopes : hierarchical names, the top module's first; what lies within them is written. None: everything.
        clock_mhz : how long a cycle is in the file, whose unit is 1 ps.

        Raises
        ------
        BadValue
            if the cycles are no range.
        SimulationError
            if the library was built without trace=True, or the file cannot be written.
        """
        first, last = cycles[0], 2 ** 64 - 1 if cycles[1] is None else cycles[1]
        if not 0 <= first < last:
            raise BadValue(f"waves are written from a first cycle to a later one, not from {first} to {last}")
        if path is not None and not self._library.esb_can_trace():
            raise SimulationError("this simulator writes no waves; build it with trace=True")
        text, names = None if path is None else str(path).encode(), "\n".join(scopes).encode()
        failed = self._call("esb_trace", text, first, last, names, 1_000_000 // clock_mhz)
        if failed and path is not None:
            raise SimulationError(f"cannot write waves to {path}")


_LIBRARIES = {}


def _load(path) -> ctypes.CDLL:
    path = str(Path(path).resolve())
    if path not in _LIBRARIES:
        library = ctypes.CDLL(path)
        for name, (result, arguments) in _PROTOTYPES.items():
            if name in _OPTIONAL and not hasattr(library, name):
                continue
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        _LIBRARIES[path] = library
    return _LIBRARIES[path]


def _port_names(library) -> tuple:
    names = []
    while (name := library.esb_port_name(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


_HANDLE, _INT, _U32, _U64, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_char_p
_PROTOTYPES = {
    "esb_new": (_HANDLE, [ctypes.c_void_p, _U64, _U64, _INT]),
    "esb_delete": (None, [_HANDLE]),
    "esb_port_name": (_TEXT, [_U32]),
    "esb_can_trace": (_INT, []),
    "esb_reset": (None, [_HANDLE, _U32]),
    "esb_cycles": (_U64, [_HANDLE]),
    "esb_interrupt": (_INT, [_HANDLE]),
    "esb_violation": (_TEXT, [_HANDLE]),
    "esb_violations": (_U64, [_HANDLE]),
    "esb_clear_violations": (None, [_HANDLE]),
    "esb_read": (_INT, [_HANDLE, _U32, ctypes.POINTER(_U32), _U64]),
    "esb_write": (_INT, [_HANDLE, _U32, _U32, _U64]),
    "esb_run": (_U64, [_HANDLE, _U64, _INT]),
    "esb_set_timing": (_INT, [_HANDLE, _U32, _U32, _U32, _U32, _U32, _U64, _U64, ctypes.POINTER(_U32), _U64]),
    "esb_set_shared": (None, [_HANDLE, _U64, _U64]),
    "esb_add_fault": (None, [_HANDLE, _INT, _U64, _U64, _U32]),
    "esb_clear_faults": (None, [_HANDLE]),
    "esb_set_stall": (_INT, [_HANDLE, _INT, _U32, _U64]),
    "esb_wrong_last": (_INT, [_HANDLE, _U32, _U64, _INT]),
    "esb_statistics": (_INT, [_HANDLE, _U32, ctypes.POINTER(_U64)]),
    "esb_trace": (_INT, [_HANDLE, _TEXT, _U64, _U64, _TEXT, _U64]),
    "esb_set_clocks": (None, [_HANDLE, _U64, _U64, _U64]),
}
_OPTIONAL = ("esb_set_clocks",)
"""Of engines with two clocks."""
