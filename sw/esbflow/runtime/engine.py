"""The driver's core: load a program, run batches, and turn every failure into a sentence. NumPy only."""

import time
from dataclasses import dataclass

import numpy as np

from esbflow.engine_config import INTERFACE_VERSION
from esbflow.maps import as_maps
from esbflow.registers import COUNTERS, ID_VALUE, LOG_BEATS, REGIONS, REGISTERS
from esbflow.runtime.errors import EngineBusy, EngineFault, EngineMissing, EngineTimeout, InputError, ProgramError
from esbflow.runtime.layout import encode_images, fold_windows, pack, unpack
from esbflow.runtime.program_file import LoadedProgram, load_program
from esbflow.runtime.transport import Transport

BEAT_BYTES = 16
WATCHDOG_CYCLES = 1_000_000
"""Cycles in which nothing moves before the engine itself gives up: 4 ms at 250 MHz."""
STILL_SECONDS = 10.0
"""Wall time that the driver waits while even the engine's cycle counter stands still."""
QUIET_SECONDS = 2.0
"""Wall time in which a stopped engine must have finished what it owes the bus."""

_OFFSET = {name: register.offset for name, register in REGISTERS.items()}
_STATUS = {name: (low, (1 << width) - 1) for name, low, width in REGISTERS["STATUS"].fields}


@dataclass(frozen=True, eq=False)
class Result:
    """`outputs` int64 (n, c, h, w); `layers`: per layer and run of a batch the counters' increments; `cycles` in all."""

    outputs: np.ndarray
    layers: list
    cycles: int
    runs: int
    scale: float


class Engine:
    """One engine behind a transport.

    Parameters
    ----------
    transport : Transport
    watchdog : cycles without any movement before the engine stops with an error; 0 never.

    Raises
    ------
    EngineMissing
        if the ID or version register is not an engine's.
    """

    def __init__(self, transport: Transport, watchdog: int = WATCHDOG_CYCLES):
        self._transport = transport
        self._watchdog = watchdog
        self._program = None
        self._buffers = {}
        identity = self._read("ID")
        if identity != ID_VALUE:
            raise EngineMissing(f"expected 0x{ID_VALUE:08x} in the ID register, found 0x{identity:08x}: "
                                "this is no engine, or its overlay is not loaded")
        version = self._read("VERSION")
        if version != INTERFACE_VERSION:
            raise EngineMissing(f"the engine has interface version {version} and this driver speaks "
                                f"{INTERFACE_VERSION}; install the matching esbflow")

    # -- registers --------------------------------------------------------------------------------------------
    def _read(self, name: str) -> int:
        return self._transport.read(_OFFSET[name])

    def _write(self, name: str, value: int) -> None:
        self._transport.write(_OFFSET[name], int(value))

    def status(self) -> dict:
        """The fields of the STATUS register."""
        value = self._read("STATUS")
        return {name: value >> low & mask for name, (low, mask) in _STATUS.items()}

    def counters(self) -> dict:
        """The counters as they stand; those of the last run after it."""
        return {name: self._read(f"COUNT_{name.upper()}") for name, _ in COUNTERS}

    @property
    def hash(self) -> int:
        return self._read("HASH_LO") | self._read("HASH_HI") << 32

    # -- program ------------------------------------------------------------------------------------------------
    def load(self, program) -> None:
        """Load a program (a path, or what load_program or the compiler returned) and allocate its memory.

        Raises
        ------
        ProgramError
            if the file is damaged or was compiled for another engine.
        EngineBusy
            if memory has not answered what the last run asked for.
        """
        if not hasattr(program, "instructions"):
            program = load_program(program)
        program = LoadedProgram(program.meta, program.instructions, program.weights, program.table)
        wanted, found = program.meta["engine_hash"], f"{self.hash:016x}"
        if wanted != found:
            size = self._read("SIZE")
            raise ProgramError(
                f"program {program.meta['name']} was compiled for engine {program.meta['engine']['name']} ({wanted}), and "
                f"this one is another ({size & 0xFFFF}x{size >> 16}, {found}); compile it for this engine")
        self.unload()
        sizes = dict(program.meta["regions"], program=program.instructions.nbytes, weights=program.weights.nbytes)
        try:
            for region in REGIONS:
                size = max(BEAT_BYTES, -(-sizes[region] // BEAT_BYTES) * BEAT_BYTES)
                buffer = self._buffers[region] = self._transport.allocate(size)
                buffer.array[:] = 0
                # Also where only the engine writes: a dirty cache line must not land on its results later.
                buffer.flush()
        except BaseException:
            self.unload()
            raise
        self._put("program", program.instructions.astype("<u8").view(np.uint8).reshape(-1))
        self._put("weights", program.weights)
        for region in REGIONS:
            address = self._buffers[region].address
            self._write(f"{region.upper()}_LO", address & 0xFFFFFFFF)
            self._write(f"{region.upper()}_HI", address >> 32)
            self._write(f"{region.upper()}_BYTES", -(-sizes[region] // BEAT_BYTES) * BEAT_BYTES)
        self._write("PROGRAM_LENGTH", len(program.instructions))
        self._program = program

    def unload(self) -> None:
        """Free the program's memory, once the engine no longer uses it; raises as recover does."""
        self.recover()
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers = {}
        self._program = None

    def _put(self, region: str, data: np.ndarray) -> None:
        buffer = self._buffers[region]
        buffer.array[:data.size] = data
        buffer.flush()

    # -- running ------------------------------------------------------------------------------------------------
    def run(self, images: np.ndarray, progress=None, deadline_cycles: int | None = None) -> Result:
        """Run uint8 images (n, c, h, w), sequences (n, c, length) or rows (n, features), any n; the program's batch is
        filled up with zeros.

        `progress`, if given, is called with the number of images done. A batch that takes more engine cycles than
        `deadline_cycles` is stopped; None leaves it to the watchdog.

        Raises
        ------
        InputError
            if the images' shape or type is not the program's, or there are none.
        EngineFault, EngineTimeout, EngineBusy
            as the engine fared; the next run works, unless memory has never answered.
        """
        program = self._program
        if program is None:
            raise ProgramError("no program is loaded; call load() first")
        images = self._checked(images)
        batch, outputs, layers, cycles = program.meta["batch"], [], [], 0
        for start in range(0, len(images), batch):
            part = images[start:start + batch]
            filled = np.zeros((batch, *part.shape[1:]), dtype=np.uint8)
            filled[:len(part)] = part
            self._put("input", self._packed(filled))
            self._start()
            self._finish(deadline_cycles)
            outputs.append(self._outputs()[:len(part)])
            layers.append(self._layer_counters())
            cycles += self._read("COUNT_CYCLES")
            if progress:
                progress(start + len(part))
        return Result(np.concatenate(outputs), layers, cycles, len(layers), program.meta["output"]["scale"])

    def _checked(self, images) -> np.ndarray:
        shape = tuple(self._program.meta["input"]["shape"])
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise InputError(f"images must be uint8, not {images.dtype}; the program's table does the normalisation")
        images = as_maps(images, shape, InputError)
        if len(images) == 0:
            raise InputError("there are no images to run: the batch is empty")
        return images

    def _packed(self, images: np.ndarray) -> np.ndarray:
        program = self._program
        meta = program.meta["input"]
        codes = fold_windows(encode_images(images, program.table), meta)
        return pack(codes, program.meta["engine"]["rows"], meta["digits"], meta["pitch"])

    def _outputs(self) -> np.ndarray:
        program, meta = self._program, self._program.meta["output"]
        buffer = self._buffers["output"]
        buffer.invalidate()
        size = program.meta["regions"]["output"]
        return unpack(np.asarray(buffer.array[:size]), tuple(meta["shape"]), program.meta["batch"],
                      program.meta["engine"]["rows"], meta["digits"], meta["pitch"], meta["signed"])

    def _layer_counters(self) -> list:
        """Per layer: the counters' increments since the layer before, from the log."""
        buffer = self._buffers["log"]
        buffer.invalidate()
        names = [name for name, _ in COUNTERS]
        count = len(self._program.meta["layers"])
        words = np.asarray(buffer.array[:count * LOG_BEATS * BEAT_BYTES]).view("<u4").reshape(count, -1)
        before = np.zeros(len(names), dtype=np.int64)
        layers = []
        for layer, record in zip(self._program.meta["layers"], words[:, :len(names)].astype(np.int64)):
            layers.append({"name": layer["name"], **dict(zip(names, ((record - before) & 0xFFFFFFFF).tolist()))})
            before = record
        return layers

    def _start(self) -> None:
        self.recover()
        self._write("WATCHDOG", self._watchdog)
        self._write("IRQ_STATUS", 3)
        self._write("IRQ_ENABLE", 3)
        self._write("CONTROL", 1)

    def _finish(self, deadline: int | None) -> None:
        """Wait for done or error. Deadlines count engine cycles; wall time counts only while its cycle counter stands
        still."""
        cycles, moved, elapsed = 0, time.monotonic(), 0
        while True:
            status = self.status()
            if status["error"]:
                self._write("IRQ_STATUS", 3)
                raise self._fault(status)
            if status["done"] and not status["busy"]:
                self._write("IRQ_STATUS", 3)
                return
            now = self._read("COUNT_CYCLES")
            if now != cycles:
                elapsed += (now - cycles) & 0xFFFFFFFF
                cycles, moved = now, time.monotonic()
                if deadline is not None and elapsed > deadline:
                    layer = self._program.layer_name(self._read("LAYER"))
                    self.abort()
                    raise EngineTimeout(f"the run was not done after {elapsed} cycles, with a deadline of {deadline}, and "
                                        f"was stopped in layer {layer}")
            elif time.monotonic() - moved > STILL_SECONDS:
                raise EngineTimeout(
                    f"the engine's cycle counter has stood at {now} for {STILL_SECONDS:g} s while it is "
                    f"{'busy' if status['busy'] else 'idle'}: its clock has stopped, or the overlay was replaced; load the "
                    "overlay again")
            if not self._transport.wait_for_interrupt(0.1):
                time.sleep(0)

    def _fault(self, status: dict) -> EngineFault:
        layer = self._read("ERROR_LAYER")
        address = self._read("ERROR_ADDRESS_LO") | self._read("ERROR_ADDRESS_HI") << 32
        return EngineFault(status["code"], status["unit"], layer, self._program.layer_name(layer), address)

    def abort(self) -> None:
        """Stop the run under way; it ends with error `aborted`."""
        self._write("CONTROL", 2)

    def recover(self, seconds: float = QUIET_SECONDS) -> None:
        """Stop a run that is under way, and wait until the engine has finished what it owes the bus.

        Raises
        ------
        EngineBusy
            if it does not within `seconds`: memory does not answer. Once it answers, recover() succeeds; else load the
            overlay again.
        """
        limit = time.monotonic() + seconds
        if self.status()["busy"]:  # left behind by an exception, Ctrl-C for one
            self.abort()
        while True:
            status = self.status()
            if status["quiescent"]:
                return
            if time.monotonic() > limit:
                raise EngineBusy(
                    f"the engine is still {'running' if status['busy'] else 'waiting for memory to answer'} after "
                    f"{seconds:g} s; try again once memory answers, or load the overlay again")
