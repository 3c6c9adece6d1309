"""Every register access and memory transfer of a run, in a file, and played back: a board's failure can be sent in.

    engine = Engine(Recorder(transport, "failure.jsonl"))       # on the board
    Engine(Replay("failure.jsonl"))                             # the same calls anywhere: the first difference is named
    play(load("failure.jsonl"), other_transport)                # the same accesses on a simulator: where its answers differ

One JSON object a line; memory is written out in base64 of zlib.
"""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from esbflow.errors import reason
from esbflow.registers import REGISTERS
from esbflow.runtime.errors import RuntimeFault

FORMAT = 1
_VOLATILE = {register.offset for name, register in REGISTERS.items() if name.startswith("COUNT_")}
"""Counters run on between two accesses: a replay on a simulator does not compare them."""


class RecordingError(RuntimeFault, ValueError):
    """A recording that cannot be read, or that differs from what is played."""


def _packed(data: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(data, dtype=np.uint8).tobytes())).decode()


def unpacked(text: str) -> np.ndarray:
    """The bytes of a memory transfer."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)


class Recorder:
    """A transport that writes down what passes through to another one.

    Lines are flushed as they are written: what a crash leaves is whole up to its last line.
    """

    def __init__(self, transport, path: str | Path, note: str = ""):
        self._transport = transport
        self._file = open(path, "w")
        self._buffers = 0
        self._write_line({"op": "header", "format": FORMAT, "note": note})

    def _write_line(self, entry: dict) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def read(self, offset: int) -> int:
        value = self._transport.read(offset)
        self._write_line({"op": "read", "offset": offset, "value": value})
        return value

    def write(self, offset: int, value: int) -> None:
        self._write_line({"op": "write", "offset": offset, "value": value})
        self._transport.write(offset, value)

    def allocate(self, size: int) -> "_RecordedBuffer":
        buffer = self._transport.allocate(size)
        self._buffers += 1
        self._write_line({"op": "allocate", "size": size, "buffer": self._buffers, "address": buffer.address})
        return _RecordedBuffer(self, buffer, self._buffers)

    def wait_for_interrupt(self, seconds: float) -> bool:
        waited = self._transport.wait_for_interrupt(seconds)
        self._write_line({"op": "wait", "seconds": seconds, "waited": waited})
        return waited

    def close(self) -> None:
        """Close the recording's file."""
        self._file.close()


class _RecordedBuffer:
    def __init__(self, recorder: Recorder, buffer, number: int):
        self._recorder, self._buffer, self._number = recorder, buffer, number
        self.address, self.array = buffer.address, buffer.array

    def flush(self) -> None:
        self._recorder._write_line({"op": "flush", "buffer": self._number, "data": _packed(self.array)})
        self._buffer.flush()

    def invalidate(self) -> None:
        self._buffer.invalidate()
        self._recorder._write_line({"op": "invalidate", "buffer": self._number, "data": _packed(self._buffer.array)})

    def free(self) -> None:
        self._recorder._write_line({"op": "free", "buffer": self._number})
        self._buffer.free()


def load(path: str | Path) -> list:
    """The accesses of a recording; a last line that a crash has cut is left out.

    Raises
    ------
    RecordingError
        if the file is no recording, or of another format.
    """
    entries = []
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path} cannot be read as a recording: {reason(error)}") from None
    for number, line in enumerate(lines):
        try:
            entries.append(json.loads(line))
        except ValueError:
            if number < len(lines) - 1:
                raise RecordingError(f"line {number + 1} of {path} is damaged") from None
    if not entries or not isinstance(entries[0], dict) or entries[0].get("op") != "header":
        raise RecordingError(f"{path} is not a recording of esbflow.runtime.recording.Recorder")
    if entries[0]["format"] != FORMAT:
        raise RecordingError(f"{path} is a recording of format {entries[0]['format']}, and this is format {FORMAT}")
    return entries[1:]


class Replay:
    """A transport that answers as a recording did, and insists on the same accesses in the same order.

    Raises
    ------
    RecordingError
        from an access, at the first difference.
    """

    def __init__(self, path: str | Path):
        self._entries, self._at = load(path), 0
        self._mark: tuple[Any, Any] = (None, None)  # of the run: in the recording, and now

    def next(self, op: str, **expected) -> dict:
        """The next access, which must be `op` with these values."""
        if self._at == len(self._entries):
            raise RecordingError(f"the recording ends, and a {op} {expected or ''} comes after it")
        entry = self._entries[self._at]
        if entry["op"] != op or any(entry[key] != value for key, value in expected.items()):
            raise RecordingError(f"access {self._at + 1} is a {op} {expected}, and in the recording it is {_short(entry)}")
        self._at += 1
        return entry

    @property
    def finished(self) -> bool:
        """Whether all that was recorded has been asked for."""
        return self._at == len(self._entries)

    def read(self, offset: int) -> int:
        value = self.next("read", offset=offset)["value"]
        return self._mark[1] if offset == REGISTERS["SCRATCH"].offset and value == self._mark[0] else value

    def write(self, offset: int, value: int) -> None:
        if offset == REGISTERS["SCRATCH"].offset:  # the driver's mark of a run is random
            self._mark = self.next("write", offset=offset)["value"], value
        else:
            self.next("write", offset=offset, value=value)

    def allocate(self, size: int) -> "_ReplayedBuffer":
        entry = self.next("allocate", size=size)
        return _ReplayedBuffer(self, entry["buffer"], entry["address"], size)

    def wait_for_interrupt(self, seconds: float) -> bool:
        return self.next("wait")["waited"]


class _ReplayedBuffer:
    def __init__(self, replay: Replay, number: int, address: int, size: int):
        self._replay, self._number, self.address = replay, number, address
        self.array = np.zeros(size, dtype=np.uint8)

    def flush(self) -> None:
        self._replay.next("flush", buffer=self._number, data=_packed(self.array))

    def invalidate(self) -> None:
        self.array[:] = unpacked(self._replay.next("invalidate", buffer=self._number)["data"])[:self.array.size]

    def free(self) -> None:
        self._replay.next("free", buffer=self._number)


def _short(entry: dict) -> str:
    return str({key: value if key != "data" else f"{len(value)} characters" for key, value in entry.items()})


def play(entries: list, transport, wait: float = 1.0) -> list:
    """Do a recording's accesses on another transport, a simulator's, and return where its answers differ.

    Addresses are the other transport's own: a write of a recorded buffer's address becomes that of its counterpart. Reads of
    STATUS are repeated until they are as recorded, for at most `wait` interrupts' time each. Counters, and the log of
    counters in memory, are not compared: they depend on how fast memory is.

    Returns
    -------
    list of sentences; empty where the other transport answers as the recorded one did.
    """
    differ, buffers, words, addresses, log = [], {}, {}, {}, None
    for number, entry in enumerate(entries, 1):
        op = entry["op"]
        if op == "allocate":
            made = buffers[entry["buffer"]] = transport.allocate(entry["size"])
            addresses[entry["buffer"]] = entry["address"] & 0xFFFFFFFF
            words[entry["address"] & 0xFFFFFFFF] = made.address & 0xFFFFFFFF
            words[entry["address"] >> 32, "high"] = made.address >> 32
        elif op == "flush":
            data = unpacked(entry["data"])
            buffers[entry["buffer"]].array[:data.size] = data
            buffers[entry["buffer"]].flush()
        elif op == "invalidate":
            buffers[entry["buffer"]].invalidate()
            here, there = np.asarray(buffers[entry["buffer"]].array), unpacked(entry["data"])
            is_log = addresses[entry["buffer"]] == log
            wrong = 0 if is_log else int((here[:there.size] != there).sum())
            if wrong:
                differ.append(f"access {number}: {wrong} of {there.size} bytes read from buffer {entry['buffer']} differ")
        elif op == "free":
            buffers.pop(entry["buffer"]).free()
        elif op == "write":
            log = entry["value"] if entry["offset"] == REGISTERS["LOG_LO"].offset else log
            transport.write(entry["offset"], _address(entry, words))
        elif op == "read":
            _compare(transport, entry, number, wait, differ)
    return differ


def _address(entry: dict, words: dict) -> int:
    name = next((name for name, register in REGISTERS.items() if register.offset == entry["offset"]), "")
    if name.endswith("_LO") and not name.startswith("HASH"):
        return words.get(entry["value"], entry["value"])
    if name.endswith("_HI") and not name.startswith("HASH"):
        return words.get((entry["value"], "high"), entry["value"])
    return entry["value"]


def _compare(transport, entry: dict, number: int, wait: float, differ: list) -> None:
    if entry["offset"] in _VOLATILE or entry["offset"] == REGISTERS["LAYER"].offset:
        return
    value = transport.read(entry["offset"])
    if value != entry["value"] and entry["offset"] == REGISTERS["STATUS"].offset and not entry["value"] & 1:
        transport.wait_for_interrupt(wait)
        value = transport.read(entry["offset"])
    busy = entry["offset"] == REGISTERS["STATUS"].offset and entry["value"] & 1
    if value != entry["value"] and not busy:  # how often a busy engine was asked is no difference
        differ.append(f"access {number}: register 0x{entry['offset']:03x} reads 0x{value:08x}, recorded "
                      f"0x{entry['value']:08x}")
