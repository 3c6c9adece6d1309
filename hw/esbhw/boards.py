"""The boards that `esbflow bitstream` builds for: all that differs between them stands in one dataclass each."""

from dataclasses import dataclass, replace

from esbflow.errors import BadValue
from esbflow.suggest import no_such


@dataclass(frozen=True)
class Device:
    """What an FPGA has: LUTs (of four inputs on ECP5 and Gowin), flip-flops, block RAMs (36 Kb; 18 Kb on those)."""

    lut: int
    ff: int
    bram: int


@dataclass(frozen=True)
class Board:
    """A board.

    Parameters
    ----------
    name, title : what the command line and the documents call it.
    flow : "vivado"; or "ecp5" or "gowin", open tools (Yosys, nextpnr, and the family's packer).
    part : as the tools call it.
    device : its capacity.
    target : of the RTL, see esbhw.target: LUT6_2 and CARRY8 exist in UltraScale and later.
    yosys : the family that Yosys estimates with.
    licence : what the part needs beyond the free edition of Vivado, or "".
    clock_mhz : the fabric clock that is asked for unless another is given.
    processor : name of the processor's IP core.
    board_parts : patterns of the board's files in Vivado's store; without them the memory has no preset.
    register_port, registers, controller : the processor's master, and where engine and interrupt controller lie behind it.
    memory_ports : the processor's slave ports, in the order in which an engine's masters take them; `port_bits` wide.
    memory : (offset, bytes) of the windows of DRAM that these ports reach.
    address_bits : of the processor's bus. The engine's upper address bits are cut off behind it.
    interrupt, raw_irq : the processor's input, and the raw number of its first line in Linux.
    memory_beats, baud, package : without a processor: block RAM in beats of 16 bytes, the serial line's rate, the package
        (of a Gowin part: its name in apycula).
    pins : without a processor: (port of the top, the package's pin) pairs, all 3.3 V.
    """

    name: str
    title: str
    flow: str
    part: str
    device: Device
    target: str
    yosys: str
    clock_mhz: int
    licence: str = ""
    processor: str = ""
    board_parts: tuple = ()
    register_port: str = ""
    registers: int = 0
    controller: int = 0
    memory_ports: tuple = ()
    port_bits: int = 0
    memory: tuple = ()
    address_bits: int = 0
    interrupt: str = ""
    raw_irq: int = 0
    memory_beats: int = 0
    baud: int = 0
    package: str = ""
    pins: tuple = ()


_GB = 1 << 30
_ULTRASCALE = dict(
    flow="vivado", target="xilinx", yosys="xcup", processor="zynq_ultra_ps_e", register_port="M_AXI_HPM0_FPD",
    registers=0xA000_0000, controller=0xA001_0000, memory_ports=tuple(f"S_AXI_{port}_FPD" for port in (
        "HP0", "HP1", "HP2", "HP3", "HPC0", "HPC1")), port_bits=128, address_bits=40, interrupt="pl_ps_irq0", raw_irq=121)
BOARDS = {board.name: board for board in (
    Board("zcu102", "AMD ZCU102", part="xczu9eg-ffvb1156-2-e", device=Device(274_080, 548_160, 912), clock_mhz=250,
          licence="the ZU9EG needs Vivado's Enterprise edition, or its 30-day evaluation",
          board_parts=("xilinx.com:zcu102:*",), memory=((0, 2 * _GB), (0x8_0000_0000, 2 * _GB)), **_ULTRASCALE),
    Board("zcu104", "AMD ZCU104", part="xczu7ev-ffvc1156-2-e", device=Device(230_400, 460_800, 312), clock_mhz=250,
          board_parts=("xilinx.com:zcu104:*",), memory=((0, 2 * _GB),), **_ULTRASCALE),
    Board("ultra96", "Avnet Ultra96-V2", part="xczu3eg-sbva484-1-i", device=Device(70_560, 141_120, 216), clock_mhz=200,
          board_parts=("avnet.com:ultra96v2:*",), memory=((0, 2 * _GB),), **_ULTRASCALE),
    Board("kv260", "AMD Kria KV260", part="xck26-sfvc784-2LV-c", device=Device(117_120, 234_240, 144), clock_mhz=200,
          board_parts=("xilinx.com:kv260_som:*",), memory=((0, 2 * _GB), (0x8_0000_0000, 2 * _GB)), **_ULTRASCALE),
    Board("pynq-z2", "TUL PYNQ-Z2", flow="vivado", target="generic", yosys="xc7", part="xc7z020clg400-1",
          device=Device(53_200, 106_400, 140), clock_mhz=100, processor="processing_system7",
          board_parts=("tul.com.tw:pynq-z2:*", "www.digilentinc.com:pynq-z2:*"), register_port="M_AXI_GP0",
          registers=0x43C0_0000, controller=0x4180_0000, port_bits=64,
          memory_ports=("S_AXI_HP0", "S_AXI_HP1", "S_AXI_HP2", "S_AXI_HP3"),
          memory=((0, _GB // 2),), address_bits=32, interrupt="IRQ_F2P", raw_irq=61),
    Board("ulx3s", "Radiona ULX3S-85F", flow="ecp5", target="generic", yosys="ecp5", part="LFE5U-85F", package="CABGA381",
          device=Device(83_640, 83_640, 208), clock_mhz=25, memory_beats=16_384, baud=1_000_000,
          pins=(("clock", "G2"), ("rx", "M1"), ("tx", "L4"), ("leds[0]", "B2"), ("leds[1]", "C2"), ("leds[2]", "C1"),
                ("leds[3]", "D2"), ("leds[4]", "D1"), ("leds[5]", "E2"), ("leds[6]", "E1"), ("leds[7]", "H3"))),
    # The LEDs are those of a module in the dock's PMOD0; the serial line is that of the USB port for debugging.
    Board("tang-mega-138k", "Sipeed Tang Mega 138K", flow="gowin", target="generic", yosys="gowin",
          part="GW5AST-LV138PG484AC1/I0", package="GW5AST-138C", device=Device(138_240, 138_240, 340), clock_mhz=50,
          memory_beats=34_816, baud=1_000_000,
          pins=(("clock", "V22"), ("rx", "V14"), ("tx", "U15"), ("leds[0]", "P19"), ("leds[1]", "R19"), ("leds[2]", "T21"),
                ("leds[3]", "U21"), ("leds[4]", "P16"), ("leds[5]", "R17"), ("leds[6]", "R18"), ("leds[7]", "T18"))),
)}
"""The named boards."""


def port_number(port: str) -> int:
    """Number of an UltraScale+ processor's slave port in its settings: HPC0 and HPC1 are 0 and 1, HP0 to HP3 2 to 5.

    >>> port_number("S_AXI_HP1_FPD"), port_number("S_AXI_HPC1_FPD")
    (3, 1)
    """
    return int(port.split("_")[2][-1]) + (0 if "HPC" in port else 2)


def with_ports(board: Board, masters: int) -> Board:
    """The board with as many memory ports in use as an engine has masters, or all."""
    return replace(board, memory_ports=board.memory_ports[:masters])


def board(name: str) -> Board:
    """A named board.

    Raises
    ------
    ValueError
        if there is none of this name, listing those that there are.

    >>> board("zcu103")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    esbflow.errors.BadValue: no board named 'zcu103'; known: zcu102, ...; did you mean zcu104?
    """
    if name not in BOARDS:
        raise BadValue(no_such("board", name, BOARDS))
    return BOARDS[name]
