"""The engine's interfaces as IP cores describe them: the one list for attributes, component.xml, .hwh and Tcl."""

from dataclasses import dataclass, field

from amaranth import Shape
from amaranth.lib.wiring import Flow

from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import activation_masters, weight_masters
from esbflow.registers import ADDRESS_BITS
from esbhw.engine.axi import read_signature, write_signature
from esbhw.engine.control import lite_signature

SLAVE = "s_axi"
MASTERS = ("m_axi_program", "m_axi_weights", "m_axi_activations")
"""Of an engine with one port for weights and one for activations."""
CLOCK, RESET, INTERRUPT = "ap_clk", "ap_rst_n", "irq"
COMPUTE_CLOCK = "compute_clk"
"""Of an engine with two clocks (esbhw.engine.two_clocks); all buses, the reset and the interrupt are in CLOCK."""
AXIMM = "xilinx.com:interface:aximm:1.0"
SIGNALS = "xilinx.com:signal:{}:1.0"


@dataclass(frozen=True)
class Port:
    """A port of the top: `direction` is "in" or "out"."""

    name: str
    direction: str
    width: int = 1


@dataclass(frozen=True)
class Interface:
    """A bus interface: `mode` "slave" or "master", `kind` its VLNV, `pins` {logical name: Port}."""

    name: str
    mode: str
    kind: str
    pins: dict
    parameters: dict = field(default_factory=dict)


def masters(config: EngineConfig) -> tuple[str, ...]:
    """Names of an engine's AXI4 masters: those of MASTERS, and behind them further ones for weights and activations."""
    return (*MASTERS, *weight_masters(config)[1:], *activation_masters(config)[1:])


def interfaces(config: EngineConfig, two_clocks: bool = False) -> list:
    """Every interface of an engine; with `two_clocks` a compute clock that belongs to none of the others."""
    names = masters(config)
    signatures = [(SLAVE, "slave", [lite_signature()])] + [(name, "master", [read_signature()]) for name in names]
    for name, _, parts in signatures:
        if name in activation_masters(config):
            parts.append(write_signature())
    found = []
    for name, mode, parts in signatures:
        pins = {pin.upper(): _port(f"{name}_{pin}", member) for part in parts for pin, member in part.members.items()}
        found.append(Interface(name, mode, AXIMM, pins, _axi_parameters(mode, pins)))
    buses = ":".join([SLAVE, *names])
    return [
        *found,
        Interface(CLOCK, "slave", SIGNALS.format("clock"), {"CLK": Port(CLOCK, "in")},
                  {"ASSOCIATED_BUSIF": buses, "ASSOCIATED_RESET": RESET}),
        Interface(RESET, "slave", SIGNALS.format("reset"), {"RST": Port(RESET, "in")}, {"POLARITY": "ACTIVE_LOW"}),
        Interface(INTERRUPT, "master", SIGNALS.format("interrupt"), {"INTERRUPT": Port(INTERRUPT, "out")},
                  {"SENSITIVITY": "LEVEL_HIGH"}),
        *([Interface(COMPUTE_CLOCK, "slave", SIGNALS.format("clock"), {"CLK": Port(COMPUTE_CLOCK, "in")})] if two_clocks
          else ()),
    ]


def _port(name: str, member) -> Port:
    return Port(name, "out" if member.flow == Flow.Out else "in", Shape.cast(member.shape).width)


def _axi_parameters(mode: str, pins: dict) -> dict:
    if mode == "slave":
        return {"PROTOCOL": "AXI4LITE", "DATA_WIDTH": 32, "ADDR_WIDTH": ADDRESS_BITS}
    read, write = "ARADDR" in pins, "AWADDR" in pins
    return {"PROTOCOL": "AXI4", "DATA_WIDTH": AXI_BEAT_BITS, "ADDR_WIDTH": AXI_ADDRESS_BITS, "ID_WIDTH": 0,
            "READ_WRITE_MODE": "READ_WRITE" if read and write else "READ_ONLY", "SUPPORTS_NARROW_BURST": 0}


def attributes(config: EngineConfig, two_clocks: bool = False) -> dict:
    """{port: [Verilog attributes]} from which Vivado recognises the interfaces of a plain Verilog module."""
    found = {}
    for interface in interfaces(config, two_clocks):
        for i, (logical, port) in enumerate(interface.pins.items()):
            lines = [("X_INTERFACE_INFO", f"{interface.kind} {interface.name} {logical}")]
            if i == 0 and interface.parameters:
                text = ", ".join(f"{key} {value}" for key, value in interface.parameters.items())
                lines.append(("X_INTERFACE_PARAMETER", f"XIL_INTERFACENAME {interface.name}, {text}"))
            found[port.name] = lines
    return found
