"""The README's table: of every named engine its synthesis figures, and how far it was verified, from the records."""

from pathlib import Path

from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.reports.marks import fill
from esbhw.performance import PLANNING_MHZ, RESULTS, density, read
from esbhw.performance_page import age, size

MARK = "table of engines"
PROOFS_FILE, RTL_FILE = "equivalence.json", "resnet18-on-rtl.json"
IN_TESTS = ("tiny4x4", "small8x16", "small8x16-channel", "base16x16")
"""Simulated in every run of the tests: random layers, every value and every cycle."""
HEAD = ("name", "array", "weights", "LUT", "FF", "BRAM36", "DSP", f"GOPS/kLUT at {PLANNING_MHZ} MHz", "simulated", "proven",
        "placed, routed", "Vivado", "board")


def fill_readme(readme: str, records: dict, folder: Path) -> str:
    """The README's text with its table of engines from the records in `folder`/results."""
    return fill(readme, MARK, table(records, folder), "the README")


def table(records: dict, folder: Path) -> str:
    """The README's table of engines."""
    proofs = read(folder / RESULTS / PROOFS_FILE)
    runs = read(folder / RESULTS / RTL_FILE).get("runs", [])
    placed = [read(path) for path in sorted((folder / RESULTS).glob("placed-*.json"))]
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|---:|---:|---:|---:|---:|---:|---|---|---|---|---|"]
    for name, r in records.items():
        proven = "whole" if name in proofs and _is_of(proofs[name], name) else "blocks"
        rates = [f"{row['device'].split('-')[0]}: {row['fmax_mhz']:.0f} MHz" for row in placed if row["engine"] == name]
        cells = (f"{name}{age(r)}", *size(r), f"{r['lut']:,}", f"{r['ff']:,}", f"{r['bram36']:g}", f"{r['dsp']}",
                 f"{density(r, PLANNING_MHZ):.1f}", _simulated(name, runs), proven, ", ".join(rates) or "no",
                 *2 * ("not run",))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _is_of(proof: dict, name: str) -> bool:
    return name in ENGINES and proof["configuration"] == f"{ENGINES[name].hash:016x}"


def _simulated(name: str, runs: list) -> str:
    """What of an engine was simulated: "similar" are smaller engines with the same options."""
    if name in IN_TESTS:
        return "tests"
    networks = {run["network"]: None for run in runs if run["engine"] == name and not run["mismatches"]
                and ENGINES[name].hash == EngineConfig.from_dict(run["config"]).hash}
    return ", ".join(networks) or "similar"
