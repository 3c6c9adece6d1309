"""The engine's AXI4-Lite registers: one table for gateware, driver, .hwh and docs.

32-bit registers, byte addresses. The 64-bit ones are a pair, low word first.
"""

from dataclasses import dataclass

from esbflow.engine_config import EngineConfig

ID_VALUE = 0x45534246  # "FBSE" in memory, "ESBF" read as a word
IP_VENDOR, IP_LIBRARY, IP_VERSION = "esbflow.org", "user", "1.0"
ADDRESS_BITS = 12

REGIONS = ("program", "weights", "workspace", "input", "output", "log")
MAPS, MAPS_REGION = "maps", len(REGIONS)
"""The region behind them, on chip, of engines with `EngineConfig.map_beats`: it has no registers."""
"""What an instruction's `region` field counts through; each has a base address and a size in bytes."""

COUNTERS = (
    ("cycles", "clock cycles since the doorbell"),
    ("compute", "cycles in which the array took a pixel"),
    ("stall_instruction", "cycles in which no pass was at hand"),
    ("stall_weights", "cycles in which the next pass waited for its weights"),
    ("stall_activations", "cycles in which the next pass waited for its activations"),
    ("stall_accumulators", "cycles in which the next pass waited for a free accumulator bank"),
    ("stall_hazard", "bubbles after passes shorter than the accumulator's pipeline"),
    ("drain", "cycles in which the requantizer took a value group"),
    ("program_beats", "128-bit beats read by the instruction fetch"),
    ("activation_beats", "128-bit beats read by the activation loader"),
    ("weight_beats", "128-bit beats read by the weight loader"),
    ("store_beats", "128-bit beats written"),
    ("passes", "weight-tile passes finished"),
)
"""Free-running from doorbell to done; 32 bits each. A layer's record in the log holds them in this order."""

LOG_BEATS = 4
"""Beats of one log record: the counters as 32-bit words, then zeros, then the layer number as the last word."""

UNITS = ("none", "fetch", "load", "weights", "compute", "store")
"""The units that an error names."""

ERRORS = {
    0: ("none", "no error"),
    1: ("axi_read", "a read was answered with SLVERR or DECERR"),
    2: ("axi_write", "a write was answered with SLVERR or DECERR"),
    3: ("axi_protocol", "RLAST came at the wrong beat"),
    4: ("opcode", "an instruction has no such opcode"),
    5: ("range", "an instruction reaches outside its memory region"),
    6: ("field", "an instruction's field is outside the engine's limits"),
    7: ("overflow", "an accumulator overflowed"),
    8: ("watchdog", "nothing moved for as many cycles as the watchdog register allows"),
    9: ("aborted", "the host asked to stop"),
    10: ("end", "the program ended without an END instruction"),
}


def vlnv(config: EngineConfig) -> str:
    """Vendor, library, name and version of an engine's IP core; every engine has its own.

    >>> vlnv(EngineConfig("tiny4x4", rows=4, cols=4))
    'esbflow.org:user:esb_tiny4x4:1.0'
    """
    return f"{IP_VENDOR}:{IP_LIBRARY}:{config.module_name}:{IP_VERSION}"


def is_engine(ip_type: str | None) -> bool:
    """Whether an IP core's VLNV is that of some engine."""
    return (ip_type or "").startswith(f"{IP_VENDOR}:{IP_LIBRARY}:esb_")


@dataclass(frozen=True)
class Register:
    """A 32-bit register: its byte offset in the engine's AXI4-Lite space and what its bits mean."""

    name: str
    offset: int
    access: str  # "read-only" or "read-write", as IP-XACT and PYNQ spell it
    description: str
    fields: tuple = ()  # (name, lowest bit, width)


def _registers():
    ro, rw = "read-only", "read-write"
    yield Register("ID", 0x000, ro, "constant 0x45534246")
    yield Register("VERSION", 0x004, ro, "interface version")
    yield Register("HASH_LO", 0x008, ro, "configuration hash, low word")
    yield Register("HASH_HI", 0x00C, ro, "configuration hash, high word")
    yield Register("SIZE", 0x010, ro, "array size", (("rows", 0, 16), ("cols", 16, 16)))
    yield Register("SCRATCH", 0x014, rw, "reads back what was written")
    yield Register("CONTROL", 0x018, rw, "write one to act; reads as zero", (("start", 0, 1), ("abort", 1, 1)))
    yield Register("STATUS", 0x01C, ro, "state of the run", (
        ("busy", 0, 1), ("done", 1, 1), ("error", 2, 1), ("quiescent", 3, 1), ("code", 8, 8), ("unit", 16, 8)))
    yield Register("IRQ_ENABLE", 0x020, rw, "level interrupt sources", (("done", 0, 1), ("error", 1, 1)))
    yield Register("IRQ_STATUS", 0x024, rw, "write one to clear", (("done", 0, 1), ("error", 1, 1)))
    yield Register("PROGRAM_LENGTH", 0x028, rw, "instructions in the program")
    yield Register("WATCHDOG", 0x02C, rw, "cycles without progress before error 8; 0 waits for ever")
    yield Register("ERROR_ADDRESS_LO", 0x030, ro, "bus address of the failing access, low word")
    yield Register("ERROR_ADDRESS_HI", 0x034, ro, "bus address of the failing access, high word")
    yield Register("ERROR_LAYER", 0x038, ro, "layer number of the failing instruction")
    yield Register("LAYER", 0x03C, ro, "layer number of the pass in the array")
    for i, region in enumerate(REGIONS):
        name = region.upper()
        yield Register(f"{name}_LO", 0x040 + 16 * i, rw, f"base address of the {region} region, low word, of a 4 KB page")
        yield Register(f"{name}_HI", 0x044 + 16 * i, rw, f"base address of the {region} region, bits 39 to 32")
        yield Register(f"{name}_BYTES", 0x048 + 16 * i, rw, f"size of the {region} region in bytes")
    yield Register("SLICE_BYTES", 0x0A0, rw, "bytes from a slice's part of input, workspace, output and log to the next "
                   "slice's, a multiple of 4 KB; zero in an engine of one slice")
    for i, (name, description) in enumerate(COUNTERS):
        yield Register(f"COUNT_{name.upper()}", 0x100 + 4 * i, ro, description)


REGISTERS = {register.name: register for register in _registers()}
