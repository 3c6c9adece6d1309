"""What the engines were to reach per LUT, beside what they reach: tables of docs/performance.md."""

from dataclasses import dataclass, replace

from esbflow import area
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbhw.block_records import BLOCKS, BLOCKS_FILE
from esbhw.performance import PLANNING_MHZ, density


@dataclass(frozen=True)
class Goal:
    """GOPS/kLUT at the planning clock that an engine was to reach. `first`: an earlier step on the way, or 0."""

    engine: str
    wanted: float
    first: float = 0


GOALS = (
    Goal("large64x64", 24, 17), Goal("table64x128-shift", 44),
    Goal("table64x64", 35), Goal("table64x128", 39), Goal("table128x128", 42),
    Goal("table64x64-w4", 38), Goal("table64x128-w4", 43), Goal("table64x64-w4-slices2", 43),
    Goal("table64x64-w4-slices4", 46), Goal("table128x128-w4", 51),
    Goal("table64x64-w2a2", 60), Goal("table64x128-w2a2", 85), Goal("zcu102-w2a2", 100),
)
OPTIONS = {
    "four weight ports": dict(weight_ports=4), "a channel unit of 32": dict(channel_unit=32),
    "a function table": dict(function_table=True),
}
"""Options whose price stands beside each goal: {column: fields of EngineConfig}."""
SLICED = (("table64x64", 2, 39), ("table64x64", 4, 42), ("table64x64-w2a2", 2, 85), ("table64x64-w2a2", 4, 100))
"""(engine, slices, goal): what has no name of its own with so many slices, and four weight ports."""
PAIR = ("small8x16", "small8x16-channel")
"""Two named engines that differ in a channel unit alone."""


def density_of(config: EngineConfig, lut: float) -> float:
    """Peak GOPS/kLUT at the planning clock."""
    return density({"rows": config.rows, "cols": config.cols, "slices": config.slices, "lut": lut}, PLANNING_MHZ)


def price(config: EngineConfig, options: dict) -> int:
    """LUTs that options add to an engine, by the area model (counted for a function table); 0 where it has them already."""
    return area.area(replace(config, **options)).lut - area.area(config).lut


def goals_section(records: dict) -> str:
    """Each goal with its engine's figure, what options would make of it, and what slices would."""
    columns = ("array, requantizer", "weights, digit", "lanes", "at least", "engine", "reached",
               *(f"with {name}" for name in OPTIONS))
    lines = ["## Goals", "",
             f"GOPS/kLUT that were to be reached at the planning clock of {PLANNING_MHZ} MHz, not routed, and what is. "
             "Beside them stand three options and their price, each by itself: LUTs by the [area model](#area-model), those "
             "of a function table counted. Shares of the lanes at work in [networks.md](networks.md#large-engines) are of "
             "engines with four weight ports and a channel unit.", "",
             f"| {' | '.join(columns)} |", "|---|---|---:|---:|---|---:|" + "---:|" * len(OPTIONS)]
    for goal in GOALS:
        config, record = ENGINES[goal.engine], records.get(goal.engine)
        lut = record["lut"] if record else area.area(config).lut
        wanted = f"{goal.first:g}, then {goal.wanted:g}" if goal.first else f"{goal.wanted:g}"
        reached = density_of(config, lut)
        marks = ("" if record else " *model*") + _mark(reached, goal.wanted)
        added = (price(config, options) for options in OPTIONS.values())
        cells = (f"{density_of(config, lut + more):.1f} (+{more:,})" if more else "has it" for more in added)
        lines.append(
            f"| {config.array}, {config.requantizer} | {config.weight_min}..{config.weight_max}, {config.digit_bits} | "
            f"{config.macs_per_cycle:,} | {wanted} | {goal.engine} | {reached:.2f}{marks} | {' | '.join(cells)} |")
    lines += ["", "At 8,192 lanes and more it is slices that keep 70 % of the lanes at work on ResNet-18 "
                  "([networks.md](networks.md#large-engines)). Engines that are named without slices would reach with them, "
                  "and with four weight ports:", "", "| engine | slices | lanes | at least | GOPS/kLUT, *model* |",
              "|---|---:|---:|---:|---:|"]
    for name, slices, wanted in SLICED:
        config = replace(ENGINES[name], slices=slices, activation_ports=slices, weight_ports=4)
        found = density_of(config, area.area(config).lut)
        lines.append(f"| {name} | {slices} | {config.macs_per_cycle:,} | {wanted} | {found:.2f}{_mark(found, wanted)} |")
    if all(name in records for name in PAIR):
        less, more = PAIR
        measured = records[more]["lut"] - records[less]["lut"]
        model = area.area(ENGINES[more]).lut - area.area(ENGINES[less]).lut
        lines += ["", f"A measured pair: {more} takes {measured:,} LUT more than {less}, for a channel unit of "
                      f"{ENGINES[more].channel_unit} channels; the model says {model:,}."]
    return "\n".join(lines)


def _mark(reached: float, wanted: float) -> str:
    return "" if reached >= wanted else " **missed**"


def blocks_section(blocks: dict, records: dict) -> str:
    """Blocks by themselves (records of esbhw.block_records), and what the same blocks take within whole engines."""
    lines = ["## Blocks", "",
             f"Blocks synthesized by themselves ([results/{BLOCKS_FILE}](results/{BLOCKS_FILE}), "
             "`python -m esbhw.block_records`), and what they were to take at most. Accumulators of 2-bit digits shift a "
             "sum by eight amounts, not four, and take more.", "", "| block | LUT | at most |", "|---|---:|---:|"]
    for name, block in BLOCKS.items():
        if name in blocks:
            found = blocks[name]["lut"] / block.count
            over = "" if found <= block.limit else " **over**"
            lines.append(f"| {name} | {found:.4g} a {block.unit}{over} | {block.limit:g} |")
    lines += ["", "Within engines, with what belongs to a block but to no single lane or column of it:", "",
              "| engine | array, LUT a MAC | accumulators, LUT a column | drain and requantizer, LUT a lane |",
              "|---|---:|---:|---:|"]
    for name, record in records.items():
        slices = record["slices"]
        counts = {"array": record["rows"] * record["cols"] * slices, "accumulators": record["cols"] * slices,
                  "drain and requantizer": record["lanes"] * slices}
        cells = [record["blocks"][block]["lut"] / count for block, count in counts.items()]
        lines.append("| {} | {:.2f} | {:.1f} | {:.0f} |".format(name, *cells))
    return "\n".join(lines)
