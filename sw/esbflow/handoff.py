"""What a .hwh says of an engine, compared with what belongs to its program and bitstream. The standard library only.

An overlay is three files of one stem: .bit, .hwh, .json. PYNQ believes the .hwh, and so a stale one sends register accesses
to addresses where nothing answers, which hangs a board.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from esbflow.engine_config import INTERFACE_VERSION, EngineConfig
from esbflow.errors import BadValue, reason
from esbflow.registers import REGISTERS, is_engine, vlnv


class HandoffError(BadValue):
    """A .hwh or .json that cannot be read, or has no engine."""


@dataclass(frozen=True)
class Handoff:
    """The facts of one engine in a .hwh: addresses in bytes, `port_bits` {processor's parameter: bits}."""

    cell: str
    vlnv: str
    hash: str
    interface_version: str
    registers: dict  # name -> offset
    address: int
    range: int
    interrupt: str  # what the engine's irq is connected to
    memory: tuple  # (master, port) pairs
    port_bits: dict
    compute_mhz: str = ""  # of the engine's compute clock; "" where it has one clock


def read(path: str | Path) -> Handoff:
    """The one engine of a .hwh.

    Raises
    ------
    HandoffError
        if the file is not a .hwh, or has no engine or more than one.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise HandoffError(f"{path} cannot be read as a .hwh: {reason(error)}") from None
    modules = list(root.iter("MODULE"))
    engines = [module for module in modules if is_engine(module.get("VLNV"))]
    if len(engines) != 1:
        raise HandoffError(f"{path} has {len(engines)} engines, where one is expected")
    engine = engines[0]
    name, parameters = engine.attrib["INSTANCE"], _parameters(engine)
    place = next((entry for module in modules for entry in module.iter("MEMRANGE") if entry.get("INSTANCE") == name), None)
    if place is None:
        raise HandoffError(f"{path} has an engine {name} without an address")
    base = int(place.attrib["BASEVALUE"], 16)
    line = next((port for port in engine.iter("PORT") if port.get("NAME") == "irq"), None)
    sink = None if line is None else line.find("CONNECTIONS/CONNECTION")
    processor = next((module for module in modules if "processing_system7" in module.get("VLNV", "")
                      or "zynq_ultra_ps_e" in module.get("VLNV", "")), None)
    memory = {(entry.get("MASTERBUSINTERFACE"), entry.get("SLAVEBUSINTERFACE")) for entry in engine.iter("MEMRANGE")
              if entry.get("MEMTYPE") == "MEMORY"}
    widths = {} if processor is None else {key: int(value) for key, value in _parameters(processor).items()
                                           if (key.endswith("DATA_WIDTH") and "SAXIGP" in key) or "S_AXI_HP" in key}
    target = "" if sink is None else f"{sink.get('INSTANCE')}/{sink.get('PORT')}"
    return Handoff(
        name, engine.attrib["VLNV"], parameters.get("HASH", ""), parameters.get("INTERFACE_VERSION", ""), _registers(engine),
        base, int(place.attrib["HIGHVALUE"], 16) - base + 1, target,
        tuple(sorted(memory)), widths, parameters.get("COMPUTE_CLOCK_MHZ", ""))


def _parameters(module) -> dict:
    return {entry.get("NAME"): entry.get("VALUE") for entry in module.findall("PARAMETERS/PARAMETER")}


def _registers(module) -> dict:
    found = {}
    for register in module.iter("REGISTER"):
        offset = next((p.get("VALUE") for p in register.findall("PROPERTY") if p.get("NAME") == "ADDRESS_OFFSET"), None)
        if offset is not None:
            found[register.get("NAME")] = int(offset, 0)
    return found


def differences(found: Handoff, expected: Handoff) -> list:
    """Sentences, one for each fact in which a .hwh differs from another; none where a driver sees no difference."""
    said = []
    for label, key in (("core", "vlnv"), ("configuration hash", "hash"), ("interface version", "interface_version"),
                       ("compute clock", "compute_mhz"), ("address", "address"), ("interrupt", "interrupt"),
                       ("memory ports", "memory")):
        one, other = getattr(found, key), getattr(expected, key)
        if one != other:
            said.append(f"{label}: {_text(one)}, expected {_text(other)}")
    missing = sorted(set(expected.registers) - set(found.registers))
    moved = sorted(name for name, offset in expected.registers.items() if found.registers.get(name, offset) != offset)
    if missing:
        said.append(f"registers missing: {', '.join(missing)}")
    if moved:
        said.append(f"registers elsewhere: {', '.join(moved)}")
    said += [f"{name}: {found.port_bits[name]} bits, expected {bits}" for name, bits in expected.port_bits.items()
             if found.port_bits.get(name, bits) != bits]
    return said


def _text(value) -> str:
    if isinstance(value, int):
        return f"0x{value:x}"
    return str(value) if value != "" else "none"


def check_overlay(bit: str | Path) -> EngineConfig:
    """The configuration of an overlay's engine, from the .json; its .hwh must be of the same build.

    Raises
    ------
    HandoffError
        naming each fact in which .hwh and .json differ, or the file that is missing.
    """
    bit = Path(bit)
    missing = [path.name for path in (bit, bit.with_suffix(".hwh"), bit.with_suffix(".json")) if not path.exists()]
    if missing:
        raise HandoffError(f"{bit.absolute().parent} lacks {' and '.join(missing)}: an overlay is a .bit, a .hwh and a "
                           ".json of one name")
    path = bit.with_suffix(".json")
    try:
        content = json.loads(path.read_text())
        config = EngineConfig.from_dict(content["config"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise HandoffError(f"{path} is not an engine.json as `esbflow rtl` writes it: {reason(error)}") from None
    found = read(bit.with_suffix(".hwh"))
    if content.get("interface_version") != INTERFACE_VERSION:
        raise HandoffError(f"{path} is of interface version {content.get('interface_version')}, and this is version "
                           f"{INTERFACE_VERSION}; build the bitstream again, or install the matching esbflow")
    wanted = {"core": (found.vlnv, vlnv(config)), "configuration hash": (found.hash, f"{config.hash:016x}"),
              "interface version": (found.interface_version, str(INTERFACE_VERSION)),
              "compute clock": (found.compute_mhz, str(content.get("compute_clock_mhz", ""))),
              "registers": (found.registers, {register.name: register.offset for register in REGISTERS.values()})}
    said = [f"{label}{'' if label == 'registers' else f' {one or None} and not {other}'}"
            for label, (one, other) in wanted.items() if one != other]
    if said:
        raise HandoffError(f"{bit.with_suffix('.hwh')} is not of the build that {path.name} describes (it has another "
                           f"{', another '.join(said)}); copy .bit, .hwh and .json of one build")
    return config
