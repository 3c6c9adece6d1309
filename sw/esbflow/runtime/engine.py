"""The driver's core: load a program, run batches, and turn every failure into a sentence. NumPy only."""

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from esbflow.engine_config import INTERFACE_VERSION
from esbflow.maps import as_maps
from esbflow.registers import COUNTERS, ID_VALUE, LOG_BEATS, REGIONS, REGISTERS
from esbflow.runtime.errors import (
    EngineBusy,
    EngineFault,
    EngineInUse,
    EngineMissing,
    EngineReplaced,
    EngineTimeout,
    InputError,
    NoMemory,
    ProgramError,
    RuntimeFault,
)
from esbflow.runtime.images import folded_input, table_rows, write_lines
from esbflow.runtime.in_flight import Submits
from esbflow.runtime.layout import unpack_output
from esbflow.runtime.pages import whole_pages
from esbflow.runtime.program_file import LoadedProgram, load_program, outputs_of
from esbflow.runtime.slices import sliced_regions, stride_of
from esbflow.runtime.transport import Transport
from esbflow.runtime.turn import Turn, in_turn

BEAT_BYTES = 16
WATCHDOG_CYCLES = 1_000_000
"""Cycles in which nothing moves before the engine itself gives up: 4 ms at 250 MHz."""
STILL_SECONDS = 10.0
"""Wall time that the driver waits while even the engine's cycle counter stands still."""
QUIET_SECONDS = 2.0
"""Wall time in which a stopped engine must have finished what it owes the bus."""
SETTLE_SECONDS = 0.1
"""The same, at the end of a run that failed: whoever handles the exception should find the engine at rest."""
START, ABORT = 1, 2

_OFFSET = {name: register.offset for name, register in REGISTERS.items()}
_STATUS = {name: (low, (1 << width) - 1) for name, low, width in REGISTERS["STATUS"].fields}


@dataclass(frozen=True, eq=False)
class Result:
    """`outputs` int64 (n, c, h, w); `layers`: per layer and run of a batch the counters' increments; `cycles` in all.

    `scale` is the real size of one step. Of a program with several outputs `outputs` and `scale` are {name: ...}.
    """

    outputs: Any
    layers: list
    cycles: int
    runs: int
    scale: Any


def _arrays(buffer) -> list:
    """The parts of a buffer: one for each slice, or the whole."""
    return getattr(buffer, "arrays", None) or [buffer.array]


class Engine(Submits):
    """One engine behind a transport. Threads may share it: they wait for each other, except for `abort`.

    `submit` and `run_async` queue runs; `another` gives a driver with a program of its own, see esbflow.runtime.in_flight.

    Parameters
    ----------
    transport : Transport
    watchdog : cycles without any movement before the engine stops with an error; 0 never.
    turn : shared by the drivers of one engine, where there may be several.

    Raises
    ------
    EngineMissing
        if the ID or version register is not an engine's.
    """

    def __init__(self, transport: Transport, watchdog: int = WATCHDOG_CYCLES, turn: Turn | None = None):
        self._transport = transport
        self._watchdog = watchdog
        self._turn = turn or Turn()
        self._program: LoadedProgram | None = None
        self._buffers: dict[str, Any] = {}
        self._mark = 0
        self._identify()

    def _identify(self) -> None:
        identity = self._read("ID")
        if identity != ID_VALUE:
            raise EngineMissing(f"expected 0x{ID_VALUE:08x} in the ID register, found 0x{identity:08x}: "
                                "this is no engine, or its overlay is not loaded")
        version = self._read("VERSION")
        if version != INTERFACE_VERSION:
            raise EngineMissing(f"the engine has interface version {version} and this driver speaks "
                                f"{INTERFACE_VERSION}; install the matching esbflow")

    @property
    def _loaded(self) -> LoadedProgram:
        if self._program is None:
            raise ProgramError("no program is loaded; call load() first")
        return self._program

    @property
    def transport(self) -> Transport:
        """What this driver reaches its engine through."""
        return self._transport

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
        """The configuration hash that the engine's registers hold, 64 bits."""
        return self._read("HASH_LO") | self._read("HASH_HI") << 32

    # -- program ------------------------------------------------------------------------------------------------
    @in_turn
    def load(self, program) -> None:
        """Load a program (a path, or what load_program or the compiler returned) and allocate its memory.

        Raises
        ------
        ProgramError
            if the file is damaged or was compiled for another engine.
        NoMemory
            if there is not enough contiguous memory; the program before is then no longer loaded.
        EngineBusy, EngineInUse, EngineMissing, EngineReplaced
            as `run` does.
        """
        self._identify()
        if not hasattr(program, "instructions"):
            program = load_program(program)
        program = LoadedProgram(program.meta, program.instructions, program.weights, program.table)
        wanted, found = program.meta["engine_hash"], f"{self.hash:016x}"
        if wanted != found:
            size = self._read("SIZE")
            raise ProgramError(
                f"program {program.meta['name']} was compiled for engine {program.meta['engine']['name']} ({wanted}), and "
                f"this one is another ({size & 0xFFFF}x{size >> 16}, {found}); compile it for this engine")
        self._free()
        try:
            self._place(program)
        except BaseException:
            self._free()
            raise

    def _place(self, program: LoadedProgram) -> None:
        config = program.config
        sizes = dict(program.meta["regions"], program=program.instructions.nbytes, weights=program.weights.nbytes)
        wanted = sizes
        sizes = {region: max(BEAT_BYTES, -(-size // BEAT_BYTES) * BEAT_BYTES) for region, size in sizes.items()}
        stride, striped = 0, program.meta.get("stripes", False)
        if striped:  # only of the log each slice has a part, a page or more behind the other
            sizes["log"] = config.slices * whole_pages(sizes["log"])
        elif config.slices > 1:
            stride = stride_of(sizes)
            buffer = self._allocate(config.slices * stride, "regions of the slices")
            self._buffers.update(sliced_regions(buffer, sizes, config.slices))
        for region in REGIONS:
            if region not in self._buffers:
                self._buffers[region] = self._allocate(sizes[region], f"{region} region")
        self._put("program", [program.instructions.astype("<u8").view(np.uint8).reshape(-1)])
        self._put("weights", [program.weights])
        if "raw" in program.meta["input"]:
            rows = table_rows(program.table, program.meta["input"]["raw"])
            for array in _arrays(self._buffers["input"]):
                array[wanted["input"] - rows.size:wanted["input"]] = rows
            self._buffers["input"].flush()
        self._settings = {"PROGRAM_LENGTH": len(program.instructions), "WATCHDOG": self._watchdog}
        for region in REGIONS:
            address = self._buffers[region].address
            self._settings[f"{region.upper()}_LO"] = address & 0xFFFFFFFF
            self._settings[f"{region.upper()}_HI"] = address >> 32
            self._settings[f"{region.upper()}_BYTES"] = -(-wanted[region] // BEAT_BYTES) * BEAT_BYTES
        if config.slices > 1:
            self._settings["SLICE_BYTES"] = stride
        self._program = program

    def _allocate(self, size: int, what: str):
        """Zeroed memory, that no cache line will land on later."""
        try:
            buffer = self._transport.allocate(size)
        except RuntimeFault:
            raise
        except (RuntimeError, OSError, MemoryError) as error:
            raise NoMemory(f"there are no {size} bytes of contiguous memory for the {what} ({error}); free what other "
                           "programs hold, or compile for a smaller batch") from error
        try:
            buffer.array[:] = 0
            buffer.flush()
        except BaseException:
            buffer.free()
            raise
        return buffer

    @in_turn
    def unload(self) -> None:
        """Free the program's memory, once the engine no longer uses it; raises as recover does."""
        self._free()

    def _free(self) -> None:
        if self._buffers:
            try:
                self._recover(QUIET_SECONDS)
            except EngineReplaced:
                pass  # the engine that wrote to this memory is gone
        self._program = None
        while self._buffers:
            # Out of the table first: what is freed must not be found there, whatever happens in between.
            self._buffers.popitem()[1].free()

    def _put(self, region: str, parts: list) -> None:
        """Write each slice's part of a region, or the one that all have."""
        buffer = self._buffers[region]
        for array, data in zip(_arrays(buffer), parts, strict=True):
            array[:data.size] = data
        buffer.flush()

    # -- running ------------------------------------------------------------------------------------------------
    @in_turn
    def run(self, images: np.ndarray, progress=None, deadline_cycles: int | None = None) -> Result:
        """Run uint8 images (n, c, h, w), sequences (n, c, length) or rows (n, features), any n; the program's batch is
        filled up with zeros. A program compiled for `channels_last` takes (n, h, w, c).

        `progress`, if given, is called with the number of images done; it cannot use the engine. A batch
        that takes more engine cycles than `deadline_cycles` is stopped; None leaves it to the watchdog.

        Raises
        ------
        InputError
            if the images' shape or type is not the program's, or there are none.
        EngineFault, EngineTimeout, EngineBusy
            as the engine fared; the next run works, unless memory has never answered.
        EngineReplaced, EngineMissing
            if another overlay is loaded now, or the engine was reset during the run.
        EngineInUse
            in a progress callback, in a forked process, or if another program started the engine during the run.
        """
        return self._run_alone(images, progress, deadline_cycles)

    @in_turn
    def _run_of(self, program, images, progress, deadline_cycles) -> Result:
        if self._program is not program:
            raise ProgramError(f"program {program.meta['name']} was unloaded before this run of it began")
        return self._run_alone(images, progress, deadline_cycles)

    def _run_alone(self, images, progress, deadline_cycles) -> Result:
        images = self._checked(images)
        self._turn.stop = False
        try:
            return self._run(images, progress, deadline_cycles)
        except BaseException:
            self._settle()
            raise

    def another(self) -> "Engine":
        """Another driver of the same engine, for another program that stays loaded beside this one's; they take turns."""
        return Engine(self._transport, self._watchdog, self._turn)

    def _run(self, images, progress, deadline_cycles) -> Result:
        program = self._loaded
        batch, outputs, layers, cycles = program.meta["batch"], [], [], 0
        starts = range(0, len(images), batch)
        ready = self._made_ready(images[:batch])
        for start in starts:
            part = images[start:start + batch]
            self._put_images(ready)
            self._start()
            if start != starts[-1]:  # the host's work for the next batch, while the engine does this one
                ready = self._made_ready(images[start + batch:start + 2 * batch])
            cycles += self._finish(deadline_cycles)
            outputs.append({name: values[:len(part)] for name, values in self._outputs().items()})
            layers.append(self._layer_counters())
            if progress:
                progress(start + len(part))
        named = {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}
        scales = {name: output["scale"] for name, output in outputs_of(program.meta).items()}
        if "outputs" not in program.meta:
            named, scales = named["output"], scales["output"]
        return Result(named, layers, cycles, len(layers), scales)

    def _places(self) -> tuple:
        """(parts of memory, images of each) in a run: each slice has images of its own, or all have stripes of the same."""
        meta, config = self._loaded.meta, self._loaded.config
        striped = meta.get("stripes", False)
        return 1 if striped else config.slices, config.rounds(meta["batch"], striped)

    def _checked(self, images) -> np.ndarray:
        shape = tuple(self._loaded.meta["input"]["shape"])
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise InputError(f"images must be uint8, not {images.dtype}; the program's table does the normalisation")
        if self._loaded.meta["input"].get("channels_last"):
            shape = (*shape[1:], shape[0])
        images = as_maps(images, shape, InputError)
        if len(images) == 0:
            raise InputError("there are no images to run: the batch is empty")
        return images

    def _made_ready(self, images: np.ndarray) -> list:
        """Of each part of memory the images of a batch, filled up with zeros; or what the first layer reads of them."""
        places, own_images = self._places()
        filled = np.zeros((places * own_images, *images.shape[1:]), dtype=np.uint8)
        filled[:len(images)] = images
        meta, config = self._loaded.meta["input"], self._loaded.config
        if "raw" in meta:
            return np.split(filled, places)
        planes = -(-meta["channels"] // config.rows) * meta["digits"]
        folded = folded_input(self._loaded, filled).reshape(planes, places, -1)  # of each plane all images, in order
        return [folded[:, place].reshape(-1) for place in range(places)]

    def _put_images(self, ready: list) -> None:
        """Write what _made_ready gave to memory."""
        meta, buffer = self._loaded.meta["input"], self._buffers["input"]
        if "raw" not in meta:
            return self._put("input", ready)
        for array, own in zip(_arrays(buffer), ready, strict=True):
            write_lines(array, own, meta["raw"])
        buffer.flush()

    def _outputs(self) -> dict:
        program, buffer, (places, own_images) = self._loaded, self._buffers["output"], self._places()
        buffer.invalidate()
        return {name: unpack_output(_arrays(buffer), meta, places * own_images, program.config)
                for name, meta in outputs_of(program.meta).items()}

    def _layer_counters(self) -> list:
        """Per layer: the counters' increments since the layer before, from the log."""
        buffer = self._buffers["log"]
        buffer.invalidate()
        names = [name for name, _ in COUNTERS]
        count = len(self._loaded.meta["layers"])
        words = np.asarray(buffer.array[:count * LOG_BEATS * BEAT_BYTES]).view("<u4").reshape(count, -1)
        before = np.zeros(len(names), dtype=np.int64)
        layers = []
        for layer, record in zip(self._loaded.meta["layers"], words[:, :len(names)].astype(np.int64)):
            layers.append({"name": layer["name"], **dict(zip(names, ((record - before) & 0xFFFFFFFF).tolist()))})
            before = record
        return layers

    def _start(self) -> None:
        """Everything that the engine must know, each time: someone may have written its registers, or loaded it anew."""
        self._identify()
        meta, found = self._loaded.meta, f"{self.hash:016x}"
        if found != meta["engine_hash"]:
            raise EngineReplaced(f"the engine is now another one ({found}) than program {meta['name']} was loaded for "
                                 f"({meta['engine_hash']}); load that overlay again, or a program for this engine")
        self._recover(QUIET_SECONDS)
        # Read back after the run: another value says that this was not our run, or not to its end. It is written before all
        # other registers: a reset that clears one of them clears it too.
        self._mark = int.from_bytes(os.urandom(4), "little") | 1
        self._write("SCRATCH", self._mark)
        for name, value in self._settings.items():
            self._write(name, value)
        self._write("IRQ_STATUS", 3)
        self._write("IRQ_ENABLE", 3)
        self._write("CONTROL", START)

    def _finish(self, deadline: int | None) -> int:
        """Wait for done or error; returns the cycles of the run.

        Deadlines count engine cycles; wall time counts only while its cycle counter stands still.
        """
        cycles, moved, elapsed = 0, time.monotonic(), 0
        while True:
            status = self.status()
            if not status["busy"]:
                self._check_mark()
            now = self._read("COUNT_CYCLES")
            if now != cycles:
                elapsed += (now - cycles) & 0xFFFFFFFF  # the counter wraps after 17 s at 250 MHz
                cycles, moved = now, time.monotonic()
            if status["error"]:
                self._write("IRQ_STATUS", 3)
                raise self._fault(status)
            if status["done"] and not status["busy"]:
                self._write("IRQ_STATUS", 3)
                return elapsed
            if deadline is not None and elapsed > deadline:
                layer = self._loaded.layer_name(self._read("LAYER"))
                self._write("CONTROL", ABORT)
                raise EngineTimeout(f"the run was not done after {elapsed} cycles, with a deadline of {deadline}, and was "
                                    f"stopped in layer {layer}")
            if time.monotonic() - moved > STILL_SECONDS:
                raise EngineTimeout(
                    f"the engine's cycle counter has stood at {now} for {STILL_SECONDS:g} s while it is "
                    f"{'busy' if status['busy'] else 'idle'}: its clock has stopped, or the overlay was replaced; load the "
                    "overlay again")
            if self._turn.stop:
                self._write("CONTROL", ABORT)  # again: the first may have come between two batches
            if not self._transport.wait_for_interrupt(0.1):
                time.sleep(0)

    def _check_mark(self) -> None:
        found = self._read("SCRATCH")
        if found == self._mark:
            return
        if found == 0:
            raise EngineReplaced("the engine was reset during the run, or its overlay was loaded again; run again")
        raise EngineInUse("another program started the engine during the run, or wrote its SCRATCH register; let one "
                          "program at a time use the engine")

    def _fault(self, status: dict) -> EngineFault:
        layer = self._read("ERROR_LAYER")
        address = self._read("ERROR_ADDRESS_LO") | self._read("ERROR_ADDRESS_HI") << 32
        return EngineFault(status["code"], status["unit"], layer, self._loaded.layer_name(layer), address)

    def abort(self) -> None:
        """Stop the run under way, of whichever driver of the engine; it ends with error `aborted`. From another thread."""
        self._turn.check_process()
        self._turn.stop = True
        self._write("CONTROL", ABORT)

    @in_turn
    def recover(self, seconds: float = QUIET_SECONDS) -> None:
        """Stop a run that is under way, and wait until the engine has finished what it owes the bus.

        Raises
        ------
        EngineBusy
            if it does not within `seconds`: memory does not answer. Once it answers, recover() succeeds; else load the
            overlay again.
        EngineReplaced
            if another overlay is loaded now.
        """
        self._recover(seconds)

    def _recover(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        if self.status()["busy"]:  # left behind by a process that was killed, for one
            self._write("CONTROL", ABORT)
        while True:
            status = self.status()
            if status["quiescent"]:
                return
            if time.monotonic() > limit:
                raise EngineBusy(
                    f"the engine is still {'running' if status['busy'] else 'waiting for memory to answer'} after "
                    f"{seconds:g} s; try again once memory answers, or load the overlay again")

    def _settle(self) -> None:
        """After an exception: leave no run behind that would go on writing to memory."""
        try:
            if self._read("SCRATCH") == self._mark:  # else the run that is under way is not ours
                self._recover(SETTLE_SECONDS)
        except Exception:
            pass  # the exception before it is what the caller must see, and the next start tries again
