"""What each named engine takes and could do: measured into docs/results/engines.json, written as docs/performance.md.

    python -m esbhw.performance              # measures every named engine again; minutes without a cache
    python -m esbhw.performance NAME ...     # only these; the other records stay
    python -m esbhw.document docs            # writes the page and the README's table from the records

The exit code is 1 if a path of a measured engine is longer than the planning clock allows; it is named.
A new configuration needs a line in esbflow.engines.ENGINES and `make bench`.
"""

import json
import sys
from pathlib import Path

from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.errors import BadValue
from esbflow.files import write_json
from esbflow.suggest import no_such
from esbhw import logic_depth, yosys
from esbhw.generate import TOP, rtlil
from esbhw.synthesis import add_up, synthesize_rtlil

RESULTS = Path("results")
"""Below the folder of the documentation."""
ENGINES_FILE, SIMULATION_FILE = "engines.json", "engine-simulation.json"
PLANNING_MHZ = 300
FLAT_LIMIT = 256
"""MACs a cycle up to which an engine is also synthesized as one module."""


def measure(config: EngineConfig, progress=None, cache=None) -> dict:
    """A configuration's record: the configuration, its resources, and its longest paths, block by block.

    Raises
    ------
    SynthesisError
        if there is no Yosys, or it refuses the design.
    """
    text = rtlil(config, "xilinx")
    mapped = synthesize_rtlil(text, TOP, progress, cache)
    record = {"config": config.to_dict(), "rows": config.rows, "cols": config.cols, "array": config.array,
              "weights": f"{config.weight_min}..{config.weight_max}", "digit_bits": config.digit_bits,
              "slices": config.slices, "lanes": config.requantize_lanes, **add_up(mapped, TOP).to_dict()}
    del record["seconds"]
    if config.macs_per_cycle <= FLAT_LIMIT:
        record["lut_flat"] = add_up(synthesize_rtlil(text, TOP, None, cache, flatten=True), TOP, per_block=False).lut
    depth = logic_depth.by_block(logic_depth.depths(mapped, TOP, text))
    return record | {"depth": {name: d.to_dict() for name, d in depth.items()}}


def update(path: Path, configs: list, say=print) -> dict:
    """Measures configurations into the record file at `path`; records of names that are no longer in ENGINES go."""
    content = read(path)
    tool = yosys.require()
    command = "python -m esbhw.performance"
    for config in configs:
        say(f"synthesize {config.name}")
        origin = {"tool": f"{tool.package} {tool.version}", "command": f"{command} {config.name}"}
        content[config.name] = measure(config) | origin
        content = {name: content[name] for name in ENGINES if name in content}
        write_json(path, content)
    return content


def is_of(record: dict, config: EngineConfig) -> bool:
    """Whether a record is of this configuration, whatever its name and clock and whatever fields were added since."""
    fields = config.to_dict()
    known = {name: value for name, value in record["config"].items() if name in fields}
    measured = EngineConfig.from_dict(known).to_dict()
    return all(measured[name] == value for name, value in fields.items() if name not in ("name", "clock_mhz"))


def read(path: Path) -> dict:
    """{engine: its record}; empty where there is no file yet.

    Raises
    ------
    ValueError
        if the file is not JSON, naming it.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise BadValue(f"{path} is not JSON ({error}); remove it and run `make bench`") from None


def beyond_the_bar(name: str, record: dict) -> list:
    """A line for each path of a record that is longer than the planning clock allows: engine, block and the path."""
    return [f"{name}, {block}: {depth[path]}" for block, depth in record["depth"].items()
            for path, number, limit in (("longest", "levels", logic_depth.MAX_LEVELS),
                                        ("longest_carry", "carry", logic_depth.MAX_CARRY)) if depth[number] > limit]


def gops(record: dict, mhz: float) -> float:
    """Peak GOPS at a clock: 2 * rows * cols * slices * mhz."""
    return 2 * record["rows"] * record["cols"] * record.get("slices", 1) * mhz / 1e3


def density(record: dict, mhz: float, lut: float | None = None) -> float:
    """Peak GOPS/kLUT at a clock; `lut` in place of the record's LUTs."""
    return gops(record, mhz) / (lut or record["lut"]) * 1e3


def main(names: list) -> int:
    """Synthesize the named engines (all, if none) and write their records; the exit code."""
    unknown = [name for name in names if name not in ENGINES]
    if unknown:
        print(no_such("engine", unknown[0], ENGINES), file=sys.stderr)
        return 2
    names = names or list(ENGINES)
    records = update(Path("docs") / RESULTS / ENGINES_FILE, [ENGINES[name] for name in names],
                     lambda text: print(text, file=sys.stderr, flush=True))
    beyond = [line for name in names for line in beyond_the_bar(name, records[name])]
    print(*beyond, sep="\n", end="\n" if beyond else "", file=sys.stderr)
    return int(bool(beyond))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
