"""LUTs of single blocks, synthesized by themselves: written to docs/results/blocks.json.

    python -m esbhw.block_records        # half a minute
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amaranth.back import rtlil as back_rtlil

from esbflow.engine_config import EngineConfig
from esbflow.files import write_json
from esbhw import yosys
from esbhw.arithmetic.requantize import RequantizeLane
from esbhw.engine.accumulators import AccumulatorColumn
from esbhw.engine.shift_add_array import ShiftAddColumn
from esbhw.generate import elaborate_definitions
from esbhw.performance import RESULTS
from esbhw.synthesis import add_up, synthesize_rtlil
from esbhw.target import Target

BLOCKS_FILE = "blocks.json"
TOP = "block_by_itself"


@dataclass(frozen=True)
class Block:
    """A component, and how many LUTs it may take for each of `count` units."""

    make: Callable
    config: EngineConfig
    limit: float
    count: int = 1
    unit: str = "lane"


def _large(**options) -> EngineConfig:
    return EngineConfig("block", **{"rows": 64, "cols": 64, "requantize_lanes": 16, "weight_path_beats": 4, **options})


def _column(limit: float, **weights) -> Block:
    return Block(ShiftAddColumn, _large(**weights), limit, count=64, unit="MAC")


BLOCKS = {
    "shift-add column, weights -15..15": _column(19.5),
    "shift-add column, weights -8..7": _column(16, weight_min=-8, weight_max=7),
    "shift-add column, weights -2..1": _column(8, weight_min=-2, weight_max=1),
    "accumulator column": Block(AccumulatorColumn, _large(), 75, unit="column"),
    "accumulator column, digits of 2 bits": Block(
        AccumulatorColumn, _large(array="table", weight_min=-2, weight_max=1, digit_bits=2, accumulator_width=24), 75,
        unit="column"),
    "requantizer lane": Block(RequantizeLane, _large(), 700),
    "requantizer lane that shifts": Block(RequantizeLane, _large(requantizer="shift"), 250),
}
"""{name of the record: block}"""


def measure(block: Block, cache: Path | None = None) -> dict:
    """{"lut", "ff"} of a block as Yosys maps it for UltraScale+; raises SynthesisError as `synthesis.synthesize` does."""
    target = Target("xilinx")
    text = back_rtlil.convert(block.make(block.config), name=TOP, platform=target, emit_src=False)
    found = add_up(synthesize_rtlil(text + elaborate_definitions(target), TOP, None, cache), TOP, per_block=False)
    return {"lut": found.lut, "ff": found.ff}


def main() -> int:
    """Measure every block and write the record; the exit code. The page marks what is over its limit."""
    tool = yosys.require()
    record = {name: measure(block) | {"tool": f"{tool.package} {tool.version}"} for name, block in BLOCKS.items()}
    write_json(Path("docs") / RESULTS / BLOCKS_FILE, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
