"""A board with a serial line, simulated pin to pin: the RTL that the bitstream is made of, and the far end of its line."""

import ctypes
from pathlib import Path

from esbsim.build import PINS, build

MOST_CYCLES = 2_000_000_000


class SerialBoard:
    """A Link (esbflow.runtime.serial_transport) onto the simulated pins.

    Parameters
    ----------
    text : RTLIL or Verilog of the board's top, named `top`, with the ports clock, rx, tx and leds.
    clock_hz : of the board's oscillator; seconds are counted in its cycles.
    baud : of the far end, which may be a little off.
    trace : a VCD file, or None.

    Raises
    ------
    esbsim.toolchain.BuildError
        if a tool is missing or refuses the design.
    """

    def __init__(self, text: str, top: str, clock_hz: int, baud: float, trace: str | Path | None = None,
                 cache_dir: str | Path | None = None):
        library = ctypes.CDLL(str(build(text, top, cache_dir, trace is not None, harness=PINS)))
        library.board_create.restype = ctypes.c_void_p
        library.board_create.argtypes = [ctypes.c_double]
        for name, result, arguments in (
                ("destroy", None, []), ("now", ctypes.c_uint64, []), ("leds", ctypes.c_uint, []),
                ("framing_errors", ctypes.c_uint64, []), ("send", None, [ctypes.c_char_p, ctypes.c_uint64]),
                ("run", ctypes.c_uint64, [ctypes.c_uint64, ctypes.c_uint64]), ("trace", ctypes.c_int, [ctypes.c_char_p]),
                ("take", ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_uint64])):
            function = getattr(library, f"board_{name}")
            function.restype, function.argtypes = result, [ctypes.c_void_p, *arguments]
        self._library, self._board = library, library.board_create(clock_hz / baud)
        self._clock_hz = clock_hz
        if trace is not None:
            library.board_trace(self._board, str(trace).encode())

    def send(self, data: bytes) -> None:
        """Bytes to the board's receiving pin, in simulated time."""
        self._library.board_send(self._board, data, len(data))

    def receive(self, size: int, seconds: float) -> bytes:
        """`size` bytes of its sending pin, or what came within so many simulated seconds."""
        there = self._library.board_run(self._board, size, min(MOST_CYCLES, int(seconds * self._clock_hz)))
        buffer = ctypes.create_string_buffer(int(there))
        count = self._library.board_take(self._board, buffer, min(size, there))
        return buffer.raw[:count]

    def run(self, cycles: int) -> None:
        """Let the board run without anybody listening."""
        self._library.board_run(self._board, 1 << 62, cycles)

    @property
    def cycles(self) -> int:
        """Clock cycles so far."""
        return self._library.board_now(self._board)

    @property
    def leds(self) -> int:
        """The eight LEDs, the first in the lowest bit."""
        return self._library.board_leds(self._board)

    @property
    def framing_errors(self) -> int:
        """Bytes of the board whose stop bit was low."""
        return self._library.board_framing_errors(self._board)

    def close(self) -> None:
        """End the simulation; once is enough."""
        if self._board is not None:
            self._library.board_destroy(self._board)
            self._board = None
