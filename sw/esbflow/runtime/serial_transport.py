"""The driver's transport over a serial link to an FPGA without a processor; the standard library and NumPy only.

    from esbflow.runtime.engine import Engine
    from esbflow.runtime.serial_transport import SerialPort, SerialTransport
    engine = Engine(SerialTransport(SerialPort("/dev/ttyUSB0")))

The engine's memory is block RAM on the FPGA. A buffer's array is the host's copy: `flush` sends what has changed, and
`invalidate` fetches it.
"""

import os
import select
import struct
import time
from typing import Protocol

import numpy as np

from esbflow import bridge
from esbflow.errors import reason
from esbflow.runtime.errors import EngineMissing, LinkError
from esbflow.runtime.pages import Pages, whole_pages

BAUD = 1_000_000
ATTEMPTS = 3
ANSWER_SECONDS = 1.0
WORD = 4


class Link(Protocol):
    """A byte stream; a serial port, or the pins of a simulated board."""

    def send(self, data: bytes) -> None:
        """Send all of it."""

    def receive(self, size: int, seconds: float) -> bytes:
        """Up to `size` bytes, as many as came in time; all that is there for `seconds` = 0."""


class SerialPort:
    """A serial port of this machine, raw, 8N1. Linux and macOS.

    Raises
    ------
    LinkError
        if it cannot be opened, or does not take the rate.
    """

    def __init__(self, path: str, baud: int = BAUD):
        import termios
        import tty

        self._file = -1
        speed = getattr(termios, f"B{baud}", None)
        if speed is None:
            raise LinkError(f"this system's serial ports have no rate of {baud} bits a second")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_NOCTTY)
            tty.setraw(self._file)
            attributes = termios.tcgetattr(self._file)
            attributes[4] = attributes[5] = speed
            attributes[2] |= termios.CLOCAL | termios.CREAD
            termios.tcsetattr(self._file, termios.TCSANOW, attributes)
            termios.tcflush(self._file, termios.TCIOFLUSH)
        except (OSError, termios.error) as error:
            self.close()
            raise LinkError(f"{path} cannot be opened as a serial port ({reason(error)}); is the board plugged in, and may "
                            "you use it?") from None

    def send(self, data: bytes) -> None:
        """All of `data`, in as many writes as the port wants."""
        while data:
            data = data[os.write(self._file, data):]

    def receive(self, size: int, seconds: float) -> bytes:
        """`size` bytes, or what came within the time."""
        got, until = b"", time.monotonic() + seconds
        while len(got) < size:
            ready, _, _ = select.select([self._file], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                break
            part = os.read(self._file, size - len(got))
            if not part:
                raise LinkError("the serial port is gone; plug the board in again")
            got += part
        return got

    def close(self) -> None:
        """Give the port back; once is enough."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class SerialTransport:
    """Registers and memory of a bridged engine, for esbflow.runtime.engine.Engine.

    Raises
    ------
    EngineMissing
        if nothing answers as a bridge of this version does.
    LinkError
        from any access, if answers stay away or are damaged several times in a row.
    """

    def __init__(self, link: Link):
        self._link = link
        self.packets = self.repeats = 0
        try:
            words = self._read_words(bridge.BRIDGE, len(bridge.INFO))
        except LinkError as error:
            raise EngineMissing(f"no bridge answers on this serial port ({error}); is the bitstream loaded?") from None
        self.info = dict(zip(bridge.INFO, struct.unpack(f"<{len(bridge.INFO)}I", words)))
        if self.info["identity"] != bridge.IDENTITY or self.info["version"] != bridge.VERSION:
            raise EngineMissing(f"the bridge answers with identity 0x{self.info['identity']:08x}, version "
                                f"{self.info['version']}, and this driver speaks version {bridge.VERSION}; install the "
                                "esbflow that made the bitstream")
        self._pages = Pages(self.info["memory_bytes"])

    def read(self, offset: int) -> int:
        return struct.unpack("<I", self._read_words(bridge.REGISTERS + offset, 1))[0]

    def write(self, offset: int, value: int) -> None:
        self._exchange(bridge.write_request(bridge.REGISTERS + offset, struct.pack("<I", value)), 0)

    def allocate(self, size: int) -> "SerialBuffer":
        """Raises MemoryError when the block RAM has no such piece left."""
        start = self._pages.allocate(size)
        if start is None:
            raise MemoryError(f"the FPGA's memory has {self.info['memory_bytes']} bytes, and not {whole_pages(size)} in one "
                              "piece left")
        return SerialBuffer(self, start, size)

    def release(self, start: int, size: int) -> None:
        """Give `size` bytes of the board's memory back."""
        self._pages.release(start, size)

    def wait_for_interrupt(self, seconds: float) -> bool:
        return False  # the driver polls; a register read takes 0.2 ms

    def read_memory(self, address: int, size: int) -> bytes:
        """`size` bytes, a whole number of words."""
        most = bridge.MOST_WORDS * WORD
        return b"".join(self._read_words(bridge.MEMORY + address + i, min(most, size - i) // WORD)
                        for i in range(0, size, most))

    def write_memory(self, address: int, data: bytes) -> None:
        """A whole number of words."""
        most = bridge.MOST_WORDS * WORD
        for i in range(0, len(data), most):
            self._exchange(bridge.write_request(bridge.MEMORY + address + i, data[i:i + most]), 0)

    def _read_words(self, address: int, words: int) -> bytes:
        return self._exchange(bridge.read_request(address, words), words * WORD)

    def _exchange(self, request: bytes, size: int) -> bytes:
        """Every request may be repeated: it writes the same words, or reads."""
        expected = 1 + size + 2
        for _ in range(ATTEMPTS):
            self.packets += 1
            self._link.send(request)
            # A byte takes 10 us at 1 Mbaud; USB adds milliseconds.
            answer = self._link.receive(expected, ANSWER_SECONDS + 40e-6 * (len(request) + expected))
            if len(answer) == expected and bridge.crc(answer) == 0 and answer[:1] == bridge.GOOD:
                return answer[1:-2]
            self.repeats += 1
            while self._link.receive(1 << 16, 0.05):  # until the line is quiet
                pass
        raise LinkError(f"no undamaged answer in {ATTEMPTS} attempts" if answer else f"no answer in {ATTEMPTS} attempts")


class SerialBuffer:
    """A piece of the FPGA's memory and the host's copy of it."""

    def __init__(self, transport: SerialTransport, address: int, size: int):
        self._transport, self.address, self._size = transport, address, size
        self.array = np.zeros(-(-size // WORD) * WORD, dtype=np.uint8)
        self._there: np.ndarray | None = None  # what the FPGA holds, as far as the host knows

    def flush(self) -> None:
        for start, stop in _changed(self.array, self._there):
            self._transport.write_memory(self.address + start, self.array[start:stop].tobytes())
        self._there = self.array.copy()

    def invalidate(self) -> None:
        self.array[:] = np.frombuffer(self._transport.read_memory(self.address, self.array.size), np.uint8)
        self._there = self.array.copy()

    def free(self) -> None:
        self._transport.release(self.address, self._size)


def _changed(new: np.ndarray, old) -> list:
    """[(start, stop)] of bytes to send, in whole words; pieces closer than 64 bytes are one.

    >>> _changed(np.array([0, 0, 0, 0, 1, 0, 0, 0], np.uint8), np.zeros(8, np.uint8))
    [(4, 8)]
    """
    if old is None:
        return [(0, new.size)]
    words = np.flatnonzero((new != old).reshape(-1, WORD).any(axis=1)) * WORD
    pieces: list[tuple] = []
    for start in words.tolist():
        if pieces and start - pieces[-1][1] < 64:
            pieces[-1] = (pieces[-1][0], start + WORD)
        else:
            pieces.append((start, start + WORD))
    return pieces
