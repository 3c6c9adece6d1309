"""A bitstream for a board without a processor, from pip packages alone: Yosys, nextpnr and the family's packer.

The same top is simulated pin to pin (esbsim.serial_board), so what is placed is what was tested.
"""

import hashlib
import importlib.util
import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amaranth.back import rtlil as back_rtlil

from esbflow import children
from esbflow.engine_config import EngineConfig
from esbflow.files import write_json, write_whole
from esbhw import generate, yosys
from esbhw.boards import Board
from esbhw.flow_error import FlowError
from esbhw.host_bridge.top import LEDS, BridgedEngine
from esbhw.target import Target

SEED = 1
KINDS = ("lut", "ff", "bram", "lutram", "dsp")
CELLS = r"_(?:TRELLIS_|LUT[1-8]_|CCU2C_|PFUMX_|L6MUX21_|DP16KD_|DFF[A-Z]*_|ALU_|MUX2_LUT|S?DP[BX]|RAM16SDP).*"
"""What Yosys appends to the name of a net where it names a cell."""


@dataclass(frozen=True)
class Tool:
    """A program, or the pip package of it.

    Parameters
    ----------
    program : its name where it is installed by itself.
    package, module, function : the pip package, and what it runs; the function takes the arguments if `takes_arguments`.
    """

    program: str
    package: str
    module: str
    function: str
    takes_arguments: bool = True

    def command(self) -> list:
        """The words that run it; raises FlowError with the package to install where it is missing."""
        found = shutil.which(self.program)
        if found:
            return [found]
        if importlib.util.find_spec(self.module.partition(".")[0]):
            call = f"tool.{self.function}({'sys.argv[1:]' if self.takes_arguments else ''})"
            return [sys.executable, "-c", f"import sys; import {self.module} as tool; sys.exit({call})"]
        raise FlowError(f"{self.program} is not installed; install it with: pip install {self.package}")


@dataclass(frozen=True)
class OpenFlow:
    """A family of FPGAs that open tools know.

    Parameters
    ----------
    synthesis : Yosys' command; it gets `-top NAME -json top.json`.
    pins : (name of the constraints' file, its text for a board).
    nextpnr, place : the tool, and its arguments for a board.
    packer, pack : the tool, and its arguments for a board and the name of the bitstream.
    suffix : of the bitstream.
    used : {"lut", "ff", "bram", "lutram", "dsp": cells of nextpnr's report that count as it}.
    """

    synthesis: str
    pins: tuple[str, Callable[[Board], str]]
    nextpnr: Tool
    place: Callable[[Board], list]
    packer: Tool
    pack: Callable[[Board, str], list]
    suffix: str
    used: dict

    def prepare(self, config: EngineConfig, board: Board, folder: Path) -> list:
        """Write the design, its constraints and engine.json into `folder` (made if missing). Returns the paths."""
        folder = Path(folder)
        assert len(board.pins) == 3 + LEDS
        name, text = self.pins
        synthesis = f"read_rtlil top.il\n{self.synthesis} -top {top_name(config, board)} -json top.json\n"
        return [write_whole(folder / "top.il", top_rtlil(config, board)), write_whole(folder / name, text(board)),
                write_whole(folder / "synth.ys", synthesis),
                write_json(folder / "engine.json", generate.manifest(config, board.target)),
                write_json(folder / "board.json", {"board": board.name, "part": board.part, "clock_mhz": board.clock_mhz,
                                                   "baud": board.baud, "memory_bytes": 16 * board.memory_beats})]

    def run(self, config: EngineConfig, board: Board, folder: Path, say=print) -> dict:
        """Synthesize, place, route and pack what `prepare` has written: the bitstream in `folder`/work. Returns figures.

        Raises
        ------
        FlowError
            if a tool is missing or fails, the design does not fit, or the clock is not reached.
        """
        folder = Path(folder)
        nextpnr, packer = self.nextpnr.command(), self.packer.command()
        say(f"Yosys: {self.synthesis.split()[0]} (minutes)")
        try:
            yosys.require().run("synth.ys", folder)
        except yosys.YosysError as error:
            raise FlowError(f"Yosys could not synthesize the design: {error}") from None
        (folder / "work").mkdir(exist_ok=True)
        # The tools get names without a folder: in WebAssembly a folder's name may be taken for that of one at the root.
        say(f"{self.nextpnr.program}: place and route (a quarter of an hour and more)")
        _run(nextpnr, [*self.place(board), "--json", "top.json", "--seed", str(SEED), "--report", "report.json"], folder,
             self.nextpnr.program)
        say(self.packer.program)
        bit = f"{config.name}{self.suffix}"
        _run(packer, self.pack(board, bit), folder, self.packer.program)
        figures = report(json.loads((folder / "report.json").read_text()), self.used)
        if figures["fmax_mhz"] < board.clock_mhz:
            raise FlowError(f"timing is missed: {figures['fmax_mhz']:.1f} MHz, and the board's clock has {board.clock_mhz}")
        if figures["dsp"]:
            raise FlowError(f"{figures['dsp']} multipliers were used, and this engine must have none")
        content = (folder / bit).replace(folder / "work" / bit).read_bytes()
        return figures | {"bit_bytes": len(content), "bit_sha256": hashlib.sha256(content).hexdigest(), "seed": SEED}


def top_name(config: EngineConfig, board: Board) -> str:
    """The name of a board's top module around an engine."""
    return f"{config.module_name}_{board.name.replace('-', '_')}"


def top_rtlil(config: EngineConfig, board: Board, baud: int | None = None, beats: int | None = None) -> str:
    """RTLIL of the whole FPGA; `baud` and `beats` of memory for simulations, which have no pins to save."""
    chosen = Target(board.target)
    top = BridgedEngine(config, beats or board.memory_beats, board.clock_mhz * 1_000_000, baud or board.baud)
    text = back_rtlil.convert(top, name=top_name(config, board), platform=chosen, ports=top.ports, emit_src=False)
    return text + generate.elaborate_definitions(chosen)


def report(content: dict, used: dict) -> dict:
    """Figures of nextpnr's report.json: Fmax, cells in use of those there are, and the critical path by block.

    `used` : as OpenFlow has it; where several kinds of cells count, those there are of the first are named.
    `critical_path` : [(block, ns of logic, ns of wires)] in the path's order. A block is the last two levels of hierarchy.
    """
    clocks = content["fmax"]
    slowest = min(clocks.values(), key=lambda clock: clock["achieved"])
    figures = {"fmax_mhz": round(slowest["achieved"], 1), "constraint_mhz": slowest["constraint"]}
    for name in KINDS:
        cells = [content["utilization"].get(kind, {"used": 0, "available": 0}) for kind in used[name]]
        figures[name], figures[f"{name}_available"] = sum(cell["used"] for cell in cells), cells[0]["available"]
    within = [path for path in content["critical_paths"] if path["from"] == path["to"]]
    steps = max(within or content["critical_paths"], key=lambda path: sum(step["delay"] for step in path["path"]))["path"]
    spent, order = defaultdict(lambda: [0.0, 0.0]), []
    for step in steps:
        block = _block(step["to"]["cell"])
        if block not in order:
            order.append(block)
        spent[block][step["type"] == "routing"] += step["delay"]
    figures["critical_path"] = [(block, round(spent[block][0], 2), round(spent[block][1], 2)) for block in order]
    figures["critical_path_ns"] = round(sum(step["delay"] for step in steps), 2)
    return figures


def _block(cell: str) -> str:
    # Yosys names a cell after the net that it drives, and the kind of the cell.
    levels = [level for level in re.split(r"[.$]", re.sub(CELLS, "", cell)) if re.fullmatch(r"[A-Za-z]\w*", level)]
    return ".".join(levels[:3]) if levels else cell


def _run(command: list, arguments: list, folder: Path, name: str) -> None:
    result = children.run([*command, *arguments], folder)
    write_whole(folder / f"{name}.log", result.stdout)
    if result.returncode:
        errors = [line for line in result.stdout.splitlines() if line.startswith("ERROR")]
        cause = (errors or result.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise FlowError(f"{name} failed: {cause}; its log is {folder / name}.log")
