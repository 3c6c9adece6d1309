"""`make bitstream`: from an engine and a board to bitstreams/BOARD/NAME, by the board's flow."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from esbflow.area import area
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.files import write_json, write_whole
from esbhw import vivado_flow
from esbhw.boards import Board
from esbhw.ecp5_flow import ECP5
from esbhw.engine.two_clocks import check_mhz
from esbhw.flow_error import FlowError
from esbhw.gowin_flow import GOWIN
from esbhw.performance import is_of

FLOWS = {"vivado": vivado_flow, "ecp5": ECP5, "gowin": GOWIN}
RECORDS = Path(__file__).parents[2] / "docs" / "results" / "engines.json"
KINDS = {"lut": "LUTs", "ff": "flip-flops", "bram": "block RAMs"}


class Prepared(NamedTuple):
    """The engine's configuration at the board's clock, and the files that the board's tools need."""

    config: EngineConfig
    files: list[Path]


def prepare(config: EngineConfig, board: Board, folder: Path, clock_mhz: int | None = None,
            compute_mhz: int | None = None, say=lambda _: None) -> Prepared:
    """Write every file that the board's tools need. Returns (the configuration at the board's clock, paths).

    With `compute_mhz` the engine's arrays have a clock of their own, and `clock_mhz` is that of its buses.

    Raises
    ------
    FlowError
        if the engine is larger than the part, by how much, with the largest engine that fits; or if the board
        has no second clock.
    """
    if compute_mhz and board.flow != "vivado":
        raise FlowError(f"{board.title} has one clock; leave --compute-clock out, or build for a board with a processor")
    check_mhz(compute_mhz)
    config = replace(config, clock_mhz=clock_mhz or board.clock_mhz)
    check_size(config, board)
    say(f"files of {config.name} for {board.title} (minutes for an engine of thousands of MACs)")
    second = {"compute_mhz": compute_mhz} if compute_mhz else {}
    return Prepared(config, FLOWS[board.flow].prepare(config, board, folder, **second))


def check_size(config: EngineConfig, board: Board) -> None:
    """Refuses what does not fit, by records of synthesis, or by the area model less its error; raises as `prepare` does.

    The records are of UltraScale+ and its primitives. Plain Verilog takes as many LUTs at least, of four inputs too.
    Blocks are compared where they are as large.
    """
    records = _records()
    over = _excess(records, config, board)
    if over:
        recorded = _of(records, config) is not None
        exact = board.target == "xilinx" and recorded
        largest = max((c for c in ENGINES.values() if not _excess(records, c, board)), key=lambda c: c.macs_per_cycle,
                      default=None)
        fits = "fits" if board.target == "xilinx" else "may fit"
        best = f"the largest named engine that {fits} is {largest.name}" if largest else "no named engine fits"
        amount = f"{'' if exact else 'at least '}{' and '.join(over)} too many{'' if recorded else ' by the area model'}"
        raise FlowError(f"{config.name} does not fit {board.title}: {amount}; {best}")


def _of(records: list, config: EngineConfig) -> dict | None:
    """The record of a configuration."""
    return next((record for record in records if is_of(record, config)), None)


def _records() -> list:
    try:
        return list(json.loads(RECORDS.read_text()).values())
    except OSError:
        return []  # an installed wheel has none


def _excess(records: list, config: EngineConfig, board: Board) -> list:
    known = _of(records, config)
    if known:
        needed = {"lut": known["lut"], "ff": known["ff"], "bram": known["bram36"]}
    else:
        model = area(config)
        surely = 1 - model.error
        needed = {"lut": round(model.lut * surely), "ff": round(model.ff * surely), "bram": model.bram36}
    return [f"{needed[kind] - getattr(board.device, kind):,g} {name}" for kind, name in KINDS.items()
            if needed[kind] > getattr(board.device, kind) and (kind != "bram" or board.flow == "vivado")]


def build(config: EngineConfig, board: Board, work: Path, out: Path, clock_mhz: int | None = None, say=print,
          compute_mhz: int | None = None) -> dict:
    """Prepare in `work`, run the tools, and publish into `out`/BOARD/NAME, which appears whole or not at all.

    Returns
    -------
    dict
        the figures, and `folder`.

    Raises
    ------
    FlowError
        as the flow does; what an earlier build published then stays as it is.
    """
    if board.flow == "vivado":
        vivado_flow.find_vivado()
    config = prepare(config, board, work, clock_mhz, compute_mhz, say).config
    try:
        figures = FLOWS[board.flow].run(config, board, work, say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the tools were ended and nothing was published. Their files so far are in "
                                f"{work}") from None
    return figures | {"folder": str(publish(config, board, work, out, figures, compute_mhz))}


def publish(config: EngineConfig, board: Board, work: Path, out: Path, figures: dict,
            compute_mhz: int | None = None) -> Path:
    """Copy .bit or .fs, .hwh (if there is one) and .json of one stem, figures and README into a new folder; rename it."""
    target = Path(out) / board.name / config.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{config.name}-") as staging:
        new = Path(staging) / "new"
        new.mkdir()
        for suffix in (".bit", ".fs", ".hwh"):
            source = Path(work) / "work" / f"{config.name}{suffix}"
            if source.exists():
                shutil.copy(source, new)
        shutil.copy(Path(work) / "engine.json", new / f"{config.name}.json")
        write_json(new / "figures.json", figures)
        write_whole(new / "README.md", readme(config, board, figures, compute_mhz))
        old = Path(staging) / "old"
        try:
            if target.exists():
                target.rename(old)
            new.rename(target)
        except BaseException:  # Ctrl-C between the two
            if old.exists() and not target.exists():
                old.rename(target)
            raise
    return target


def readme(config: EngineConfig, board: Board, figures: dict, compute_mhz: int | None = None) -> str:
    """How a published bitstream was made."""
    option = f" ARGUMENTS='--compute-clock {compute_mhz}'" if compute_mhz else ""
    second = f", compute clock {compute_mhz} MHz" if compute_mhz else ""
    rows = "".join(f"| {name} | {value} |\n" for name, value in figures.items() if not isinstance(value, list))
    path = "".join(f"| {block} | {logic} | {wires} |\n" for block, logic, wires in figures.get("critical_path", ()))
    text = (f"# {config.name} on {board.title}\n\n"
            f"Made by `make bitstream BOARD={board.name} ENGINE={config.name}{option}`, part {board.part}, configuration "
            f"{config.hash:016x}, clock {config.clock_mhz} MHz{second}.\n\n| figure | value |\n|---|---:|\n{rows}")
    head = "\nCritical path, by block:\n\n| block | ns of logic | ns of wires |\n|---|---:|---:|\n"
    return text + (head + path if path else "")
