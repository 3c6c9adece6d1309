"""docs/performance.md from the records of esbhw.performance and of the benches."""

from pathlib import Path

from esbflow import area
from esbflow.engines import ENGINES
from esbhw import goals, logic_depth
from esbhw.area_samples import SAMPLES_FILE
from esbhw.block_records import BLOCKS_FILE
from esbhw.performance import ENGINES_FILE, FLAT_LIMIT, PLANNING_MHZ, RESULTS, SIMULATION_FILE, density, gops, read
from esbhw.performance_picture import PICTURE
from esbhw.published import PUBLISHED

DEVICE, DEVICE_LUT = "ZU9EG", 274_080
STATED_MHZ = 250


def page(folder: Path) -> str:
    """docs/performance.md from the records in `folder`/results."""
    records = read(folder / RESULTS / ENGINES_FILE)
    blocks = read(folder / RESULTS / BLOCKS_FILE)
    parts = [_HEAD, _engine_table(records), goals.goals_section(records)]
    if blocks:
        parts.append(goals.blocks_section(blocks, records))
    parts += [_options_table(records), _published_table(records), _depth_section(records)]
    simulated = read(folder / RESULTS / SIMULATION_FILE)
    if simulated:
        parts.append(_simulation_section(simulated))
    placed = {path.stem: read(path) for path in sorted((folder / RESULTS).glob("placed-*.json"))}
    if placed:
        parts.append(_placed_section(placed))
    if area.MODEL.exists():
        parts.append(_area_section(area.coefficients()))
    return "\n\n".join([*parts, _provenance(records, simulated)]) + "\n"


_HEAD = f"""# Performance of the engines

| figure | how it is obtained |
|---|---|
| LUT, LUTRAM, FF, CARRY8, BRAM36, DSP | open synthesis: Yosys, `synth_xilinx -family xcup`, by module; not routed |
| LUT with pairs | an estimate on that netlist: two LUTs of at most 5 inputs together share a LUT6_2, paired greedily |
| LUT flat | the same synthesis with the engine as one module; engines of at most {FLAT_LIMIT} MACs a cycle |
| GOPS | a formula: 2 x inputs x outputs x clock, every lane busy |
| GOPS/kLUT | that over LUT, LUTRAM included |
| {STATED_MHZ} and {PLANNING_MHZ} MHz | a stated and a planning clock; **no engine has been routed on UltraScale+** |
| levels, carry bits | counted on the mapped netlist from register to register, across modules; no wire delays |
| use of the lanes, cycles | simulation of the RTL, cycle-accurate |
| *earlier RTL* | measured before the RTL changed last; figures and paths of today's may differ |

Yosys maps to few levels: a wire is worth 1500 ps to its abc9.
A LUT is what Yosys maps: LUT1 to LUT6, an inverter that it leaves, a LUT6_2 that the RTL instantiates; LUT RAM counts the
LUTs it takes. [command_line.md](command_line.md#how-resources-are-counted) has the details."""


def _engine_table(records: dict) -> str:
    columns = ("engine", "array", "weights", "requantizer lanes",
               "LUT (LUTRAM)", f"% of a {DEVICE}", "LUT with pairs", "LUT flat", "FF", "CARRY8", "BRAM36",
               "DSP", f"GOPS at {STATED_MHZ}", f"GOPS/kLUT at {STATED_MHZ}", f"GOPS at {PLANNING_MHZ}, not routed",
               f"GOPS/kLUT at {PLANNING_MHZ}, not routed", "with pairs", "levels", "carry bits")
    lines = ["## Engines", "", f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for name, r in records.items():
        paired = r["lut"] - r["pairs"]
        cells = [
            f"{name}{age(r)}", *size(r), f"{r['lanes']}",
            f"{r['lut']:,} ({r['lutram']:,})", f"{100 * r['lut'] / DEVICE_LUT:.0f}",
            f"{paired:,}", f"{r['lut_flat']:,}" if "lut_flat" in r else "", f"{r['ff']:,}", f"{r['carry8']:,.1f}",
            f"{r['bram36']:g}", f"{r['dsp']}", f"{gops(r, STATED_MHZ):,.0f}", f"{density(r, STATED_MHZ):.2f}",
            f"{gops(r, PLANNING_MHZ):,.0f}", f"{density(r, PLANNING_MHZ):.2f}", f"{density(r, PLANNING_MHZ, paired):.2f}",
            f"{_most(r, 'levels')}", f"{_most(r, 'carry')}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _options_table(records: dict) -> str:
    """Every named engine with its options; of those without a record the area model's figures."""
    columns = ("engine", "array", "requantizer", "weights", "digit", "slices", "stripes", "batch tiles", "lanes",
               "weight ports", "activation ports", "channel unit", "function table", "image buffer", "map memory",
               "table groups", "slots", "residual, ESB", "LUT", f"% of a {DEVICE}", "BRAM36", f"GOPS/kLUT at {PLANNING_MHZ}")
    lines = ["## Named engines", "",
             "Engines named after a board fit its part; `digit` is the width of a stored activation digit; the channel unit "
             "counts channels, image buffer and map memory beats of 16 bytes. Figures marked *model* are the "
             "[area model's](#area-model): the engine has not been synthesized.", "",
             f"| {' | '.join(columns)} |", "|---|---|---|" + "---:|" * (len(columns) - 3)]
    for name, config in ENGINES.items():
        record = records.get(name)
        found = area.area(config)
        lut, ram = (record["lut"], record["bram36"]) if record else (found.lut, found.bram36)
        both = config.residual and config.esb_output
        cells = (
            name, f"{config.array}, {config.rows} x {config.cols}", config.requantizer,
            f"{config.weight_min}..{config.weight_max}", config.digit_bits, config.slices, "yes" if config.stripes else "",
            "yes" if config.batch_tiles else "", config.requantize_lanes, config.weight_ports,
            config.activation_ports, config.channel_unit or "",
            "yes" if config.function_table else "", f"{config.image_beats:,}" if config.image_beats else "",
            f"{config.map_beats:,}" if config.map_beats else "",
            config.table_groups if config.array == "table" else "", config.weight_slots,
            "yes" if both else f"{int(config.residual)}, {int(config.esb_output)}",
            f"{lut:,}{'' if record else ' *model*'}", f"{100 * lut / DEVICE_LUT:.0f}", f"{ram:g}",
            f"{goals.density_of(config, lut):.2f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def age(record: dict) -> str:
    """A mark of what was measured before the RTL changed last: `earlier_rtl` in its record. Measuring again ends it."""
    return " *earlier RTL*" if record.get("earlier_rtl") else ""


def size(record: dict) -> tuple[str, str]:
    """Array and range of the weights of an engine."""
    slices = f", {record['slices']} slices" if record.get("slices", 1) > 1 else ""
    return f"{record['array']}, {record['rows']} x {record['cols']}{slices}", record["weights"]


def _bits(record: dict) -> str:
    """Widths of weights and activations that take one pass.

    >>> _bits({"weights": "-2..1", "digit_bits": 2}), _bits({"weights": "-15..15"})
    ('W2A2', 'W4A4')
    """
    low, high = map(int, record["weights"].split(".."))
    return f"W{min(4, (high - low + 1).bit_length() - 1)}A{record.get('digit_bits', 4)}"


def _most(record: dict, measure_: str) -> int:
    return max(depth[measure_] for depth in record["depth"].values())


def _published_table(records: dict) -> str:
    lines = ["## Beside published engines", "", "| engine | bits | GOPS/kLUT | how | source |", "|---|---|---:|---|---|"]
    for name, bits, value, how, source in PUBLISHED:
        lines.append(f"| {name} | {bits} | {value:.2f} | {how} | {source} |")
    for name, r in records.items():
        how = f"open synthesis, planning clock of {PLANNING_MHZ} MHz, not routed"
        source = f"[results/{ENGINES_FILE}](results/{ENGINES_FILE})"
        lines.append(f"| {name} | {_bits(r)}, {r['weights']} | {density(r, PLANNING_MHZ):.2f} | {how} | {source} |")
    lines += ["", f"![GOPS/kLUT of both arrays, by lanes]({PICTURE})"]
    return "\n".join(lines)


def _depth_section(records: dict) -> str:
    bar = (f"The planning clock asks for at most {logic_depth.MAX_LEVELS} levels and {logic_depth.MAX_CARRY} carry bits on "
           "every path; a cell is levels / carry bits. A path belongs to the block that it ends in. The paths themselves, "
           "register by register, are in "
           f"[results/{ENGINES_FILE}](results/{ENGINES_FILE}) and in what `esbflow rtl --report` prints.")
    lines = ["## Longest paths", "", bar, "", f"| block | {' | '.join(records)} |",
             "|---|" + "---:|" * len(records)]
    blocks = dict.fromkeys(block for r in records.values() for block in r["depth"])
    for block in blocks:
        cells = []
        for r in records.values():
            d = r["depth"].get(block)
            within = d and d["levels"] <= logic_depth.MAX_LEVELS and d["carry"] <= logic_depth.MAX_CARRY
            cells.append("" if d is None else f"{d['levels']} / {d['carry']}" + ("" if within else " **over**"))
        lines.append(f"| {block} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _simulation_section(simulated: dict) -> str:
    lines = ["## Use of the lanes, by simulation", "",
             "3x3 convolution, 64 to 64 channels, 28x28, one image, cold start, memory latency of "
             f"{simulated['latency']} cycles.", "",
             "| engine | cycles | cycles by the model | use of the lanes % | output values that differ |",
             "|---|---:|---:|---:|---:|"]
    for row in simulated["utilization"]:
        lines.append(f"| {row['engine']} | {row['cycles']:,} | {row['model_cycles']:,} | {100 * row['utilization']:.1f} | "
                     f"{row['mismatches']} |")
    speed = simulated["speed"]
    lines += ["", f"The compiled simulation of {speed['engine']} ran {speed['ratio']:,.0f} times as many clock cycles a "
                  "second as cocotb with Icarus on the same machine."]
    return "\n".join(lines)


def _placed_section(placed: dict) -> str:
    """Engines that open tools have placed and routed, on the devices that they know."""
    lines = ["## Placed and routed, on other devices", "",
             "Figures of FPGAs that open tools know, with LUTs of four inputs and slower: they only hint at a ZU9EG's long "
             "paths. The whole FPGA is counted: engine, block RAM as its memory, and host bridge. Delays of the GW5A are "
             "apycula's, which calls its support of this part initial. No control path of an engine limits: "
             "each of these begins or ends at block RAM, the board's or that of an engine's accumulators.", "",
             "| engine | board, device | Fmax MHz | logic cells | flip-flops | block RAM (18 Kb) | multipliers | record |",
             "|---|---|---:|---:|---:|---:|---:|---|"]
    for name, r in placed.items():
        lines.append(f"| {r['engine']} | {r['board']}, {r['device']} | {r['fmax_mhz']:.1f} | {r['lut']:,} of "
                     f"{r['lut_available']:,} | {r['ff']:,} | {r['bram']} of {r['bram_available']} | {r['dsp']} | "
                     f"[results/{name}.json](results/{name}.json): `{r['command']}`{r.get('note', '')} |")
    for r in placed.values():
        lines += ["", f"Critical path of {r['engine']} on {r['board']}, {r['critical_path_ns']} ns:", "",
                  "| block | ns of logic | ns of wires |", "|---|---:|---:|"]
        lines += [f"| {block} | {logic} | {wires} |" for block, logic, wires in r["critical_path"]]
    return "\n".join(lines)


def _area_section(model: dict) -> str:
    """How well the area model predicts engines that a fit had not seen."""
    lines = ["## Area model", "",
             "`esbflow estimate` prints LUTs, flip-flops and block RAM by a model: formulas by block (sw/esbflow/area.py), "
             "whose coefficients `python -m esbhw.area_fit` fits to the records above and to small engines "
             f"([results/{SAMPLES_FILE}](results/{SAMPLES_FILE}), measured by `python -m esbhw.area_samples`). "
             "Errors, in %, of each engine by a fit to all the others:", "",
             "| engine | LUT | FF | BRAM36 |", "|---|---:|---:|---:|"]
    for name, errors in model["left_out"].items():
        cells = (f"{100 * errors[resource]:+.1f}" if resource in errors else "" for resource in ("lut", "ff", "bram36"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _provenance(records: dict, simulated: dict) -> str:
    lines = ["## Records", "", "| record | tool | command |", "|---|---|---|"]
    lines += [f"| {name} | {r['tool']} | `{r['command']}` |" for name, r in records.items()]
    if simulated:
        lines.append(f"| [{SIMULATION_FILE}](results/{SIMULATION_FILE}) | Verilator, Icarus | `{simulated['command']}` |")
    return "\n".join(lines)
