"""LUT, FF and BRAM of an engine, from Yosys (`synth_xilinx -family xcup`), block by block. No place and route.

How it counts:
- Every module is synthesized once by itself, with its children as black boxes, and multiplied by its instances: the
  array's columns are one run. Logic is not optimised across block boundaries, so LUTs come out slightly high;
  `flatten=True` synthesizes the engine as one module and says how much.
- DSP inference is left on. That no DSP appears is a finding, not a switch.
- LUT: each LUT1..LUT6 and each inverter that Yosys leaves is one, and so is a LUT6_2 that the RTL instantiates (Yosys
  makes none). LUT RAM and shift registers count as the LUTs that they take (LUT_COST; a RAM32M16 or RAM64M8 is a whole
  slice of 8).
- Pairs: how many pairs of small LUTs a placer could put into one LUT6_2 each, estimated by netlist.lut6_2_pairs. They
  still count as two in LUT; LUT minus pairs is a lower bound.
- FF: FDRE, FDSE, FDCE, FDPE. CARRY: CARRY8 equivalents, half of Yosys's CARRY4. BRAM: 36 Kb, a RAMB18 is half.
- Latches: LDCE, LDPE; there must be none.
- Primitives that the RTL instantiates (LUT6_2, CARRY8, RAM32M16, FDRE...) pass through Yosys as they are.

Results are cached by content of each module, mapped netlist included, so that a changed block is the only one that is
synthesized again. Each module starts from the same state of Yosys, so counts do not depend on what the cache holds.
"""

import hashlib
import json
import re
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from esbflow import children
from esbflow.engine_config import EngineConfig
from esbflow.errors import UserError
from esbhw import yosys
from esbhw.cache import cache_folder
from esbhw.generate import TOP, rtlil
from esbhw.netlist import Netlist, lut6_2_pairs

COMMON = "read_verilog -lib -specify +/xilinx/cells_sim.v"
LIBRARIES = {
    "common": COMMON,
    "whole": f"{COMMON}\nread_verilog -lib +/xilinx/cells_xtra.v",  # block RAM, DSP and rarities; every step walks them
}
FEW_LEVELS = "scratchpad -set synth_xilinx.abc9.W 1500"
"""abc9's delay of a wire, in ps (300 unless told). A level of LUTs then weighs more than a carry chain. Otherwise abc9 adds
levels to save LUTs, on every path that is shorter than the module's longest carry chain."""
SYNTH = "synth_xilinx -family xcup -noiopad -noclkbuf -run"
FORMAT = 4
"""Counts up when what the cache keeps of a module changes."""
LUT_COST = {
    "INV": 1, **{f"LUT{n}": 1 for n in range(1, 7)}, "LUT6_2": 1,
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8, "RAM32X1D": 2, "RAM64X1D": 2,
    "RAM128X1D": 4, "RAM256X1D": 8, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM64X8SW": 8,
    "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
}
BRAM_COST = {"RAMB36E2": 1.0, "RAMB18E2": 0.5, "FIFO36E2": 1.0, "FIFO18E2": 0.5}
FREE = {"MUXF7", "MUXF8", "MUXF9", "BUF", "BUFG", "VCC", "GND", "$scopeinfo"}
# Blocks of the report: modules directly below the top whose names match belong together.
GROUPS = (
    (r"control.*|counters|tokens|watchdog|faults", "control, counters, tokens"),
    (r".*_queue", "instruction queues"),
    (r".*_port\d*|writer", "AXI ports"),
    (r"slots", "weight slots"),
    (r"activation_buffer|channel_buffer_\d+", "activation buffer"),
    (r"load|weights", "loaders"),
    (r"constants", "requantizer constants"),
    (r"drain", "drain and requantizer"),
)


class SynthesisError(UserError, RuntimeError):
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
    pairs: int = 0  # estimated pairs of LUTs that could share a LUT6_2
    latches: int = 0
    blocks: tuple = ()  # (name, Resources), largest first; empty inside a block
    seconds: float = 0.0  # of this call; near zero from the cache

    def to_dict(self) -> dict:
        """As resources.json has it; seconds of the whole alone."""
        fields = {k: v for k, v in asdict(self).items() if k != "blocks"}
        fields["seconds"] = round(self.seconds, 1)
        if self.blocks:
            fields["blocks"] = {
                name: {k: v for k, v in block.to_dict().items() if k != "seconds"} for name, block in self.blocks}
        else:
            del fields["seconds"]
        return fields


def synthesize(config: EngineConfig, per_block: bool = True, progress=None, cache: Path | None = None,
               flatten: bool = False, target: str = "xilinx") -> Resources:
    """Resources of a configuration's engine; minutes on the first call, a few seconds from the cache.

    Parameters
    ----------
    per_block : fill `blocks`.
    progress : called as progress(modules done, modules in all).
    cache : folder of results; None is $ESBFLOW_CACHE or build/cache.
    flatten : as one module, optimised across blocks; no blocks then, and for small engines only.
    target : whose primitives the design has, see esbhw.target.

    Raises
    ------
    SynthesisError
        if there is no Yosys, or it refuses the design.
    """
    start = time.monotonic()
    mapped = synthesize_rtlil(rtlil(config, target), TOP, progress, cache, flatten)
    return replace(add_up(mapped, TOP, per_block and not flatten), seconds=time.monotonic() - start)


@dataclass(frozen=True)
class Mapped:
    """A synthesized module: primitives by type, children by their module's name, and where its netlist lies."""

    cells: Counter
    children: dict  # {type of a cell in the netlist: name of the child in the design}
    pairs: int
    path: Path

    @property
    def netlist(self) -> Netlist:
        """The mapped netlist, read from its file anew."""
        return Netlist.load(self.path)


def synthesize_rtlil(text: str, top: str, progress=None, cache: Path | None = None, flatten: bool = False) -> dict:
    """Every module of a design, synthesized: {module name: Mapped}; only the top, with all in it, if `flatten`."""
    folder = Path(cache or cache_folder()) / "synthesis"
    folder.mkdir(parents=True, exist_ok=True)
    modules = normalise_ports(split_modules(without_brackets(text)))
    if top not in modules:
        raise SynthesisError(f"the design has no module named {top}")
    tool = _tool()
    jobs = {name: _Job(name, modules, flatten, tool) for name in ([top] if flatten else modules)}
    unique = {job.key: job for job in jobs.values()}
    waiting = [job for job in unique.values() if not (folder / f"{job.key}.json").exists()]
    done = len(unique) - len(waiting)
    if progress:
        progress(done, len(unique))
    if waiting:
        with children.pool(tool.jobs) as pool:
            for finished in pool.map(lambda group: _run(group, folder, tool), _groups(waiting, tool)):
                done += finished
                if progress:
                    progress(done, len(unique))
    return {name: job.mapped(folder) for name, job in jobs.items()}


def _tool() -> yosys.Yosys:
    try:
        return yosys.require()
    except yosys.YosysError as error:
        raise SynthesisError(str(error)) from None


def _groups(jobs: list, tool: yosys.Yosys) -> list:
    """Jobs that share a run of Yosys, whose library takes a second to read: as even as possible, the heaviest first."""
    groups = []
    for library in LIBRARIES:
        alike = sorted((job for job in jobs if job.library == library), key=lambda job: -len(job.text))
        shares = [[] for _ in range(max(min(tool.jobs, len(alike)), -(-len(alike) // tool.group)))]
        for job in alike:
            open_ = [share for share in shares if len(share) < tool.group]
            min(open_, key=lambda share: sum(len(j.text) for j in share)).append(job)
        groups += shares
    return sorted(groups, key=lambda group: -sum(len(job.text) for job in group))


def _run(group: list, folder: Path, tool: yosys.Yosys) -> int:
    """Synthesizes modules that need the same library, each from that library's state. Returns how many."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="running-") as work:
        work = Path(work)  # YoWASP's tools see the current folder, but not every absolute path
        for job in group:
            (work / f"{job.key}.il").write_text(job.text)
            (work / f"{job.key}.ys").write_text(job.script)
        (work / "library.ys").write_text(LIBRARIES[group[0].library] + "\n")
        try:
            tool.run("library.ys", work, tuple(f"{job.key}.ys" for job in group))
        except yosys.YosysError as error:
            raise SynthesisError(f"Yosys could not synthesize a module of the engine:\n{error}") from None
        for job in group:
            netlist = Netlist.from_yosys(json.loads((work / f"{job.key}.json").read_text()), job.name)
            if netlist.driven_twice():
                raise SynthesisError(f"Yosys joined two nets of a module: {netlist.driven_twice()} is driven twice")
            netlist.save(work / "netlist")
            (work / "netlist").replace(folder / f"{job.key}.netlist.gz")
            (work / "counts").write_text(json.dumps({"cells": netlist.counts(), "pairs": lut6_2_pairs(netlist)}))
            (work / "counts").replace(folder / f"{job.key}.json")
    return len(group)


def split_modules(text: str) -> dict:
    """RTLIL text -> {module name: its text}, names without the leading backslash."""
    found = re.finditer(r"^module \\?(\S+)\n.*?^end$", text, re.MULTILINE | re.DOTALL)
    return {match.group(1): match.group(0) for match in found}


def without_brackets(text: str) -> str:
    r"""The same design with < and > in place of [ and ] in names.

    Amaranth names an element of an array `regions[1]`, and Yosys 0.70's abc9 takes bit 0 of it for bit 1 of `regions`.

    >>> print(without_brackets(r"connect \regions[1].base \regions [108:69]"))
    connect \regions<1>.base \regions [108:69]
    """
    return re.sub(r"\\\S*\[\S*", lambda name: name.group(0).replace("[", "<").replace("]", ">"), text)


def normalise_ports(modules: dict) -> dict:
    """The same design with the ports that Amaranth numbers renamed in order, so that equal modules read equal.

    Amaranth calls a port that no signal of the module names `port$9313$0`; the number counts nets of the whole design.
    Here the first of a module becomes `port$0`, in the module and wherever it is instantiated.
    """
    renamed = {}
    for name, text in modules.items():
        numbered = re.findall(r"^  wire [^\n]*(\\(?:io)?port\$\d+\$\d+)$", text, re.MULTILINE)
        renamed[name] = {old: f"\\port${i}" for i, old in enumerate(dict.fromkeys(numbered))}

    def own_names(names, part):
        return re.sub(r"\\(?:io)?port\$\d+\$\d+(?=\s|$)", lambda match: names.get(match.group(0), match.group(0)), part)

    def cell(names, part):
        head, body = part.split("\n", 1)
        pins = renamed.get(re.match(r"  cell \\?(\S+)", head).group(1), {})
        connect = re.compile(r"^(    connect )(\S+)(.*)$", re.MULTILINE)
        return head + "\n" + connect.sub(
            lambda m: m.group(1) + pins.get(m.group(2), m.group(2)) + own_names(names, m.group(3)), body)

    result = {}
    for name, text in modules.items():
        if "port$" in text:
            parts = re.split(r"(^  cell \S+ \S+\n(?:    [^\n]*\n)*)", text, flags=re.MULTILINE)
            text = "".join((cell if i % 2 else own_names)(renamed[name], part) for i, part in enumerate(parts))
        result[name] = text
    return result


class _Job:
    """One module, renamed by content so that equal modules of different names are one job."""

    def __init__(self, name: str, modules: dict, flatten: bool, tool: yosys.Yosys):
        self.children, stubs = {}, {}  # by name of the stub

        def child(match):
            kind = match.group(1)
            if kind not in modules or flatten:
                return match.group(0)
            ports = _ports(modules[kind])
            stub = next((s for s, known in self.children.items() if known == kind), None)
            if stub is None:
                stub = f"stub_{len(self.children)}_{_hash(ports)}"
                self.children[stub] = kind
                stubs[stub] = f"attribute \\blackbox 1\nmodule \\{stub}\n{ports}\nend"
            return f"  cell \\{stub} "

        others = [text for other, text in modules.items() if other != name] if flatten else []
        body = re.sub(r"^  cell \\(\S+) ", child, modules[name], flags=re.MULTILINE)
        _, body = body.split("\n", 1)
        rest = "\n".join([body, *others])
        memory = re.search(r"^  (memory |cell \$mem)", rest, re.MULTILINE)
        primitives = [kind for kind in re.findall(r"^  cell \\(\S+) ", rest, re.MULTILINE)
                      if kind not in stubs and kind not in modules]
        self.library = "whole" if memory or primitives or "cell $mul " in rest else "common"
        # Without a memory in the module the steps left out do nothing, and their libraries take 2 s to read.
        steps = ["prepare:check"] if memory else ["prepare:map_memory", "map_ffram:check"]
        commands = [LIBRARIES[self.library], *(["flatten"] if flatten else []), FEW_LEVELS,
                    *(f"{SYNTH} {step}" for step in steps)]
        self.key = _hash("\n".join([*commands, tool.package, tool.version, str(FORMAT), rest]))
        self.name = f"module_{self.key}"
        self.text = "\n".join([f"module \\{self.name}", body, *others, *stubs.values()]) + "\n"
        self.script = "\n".join([
            f"read_rtlil {self.key}.il", f"hierarchy -check -top {self.name}", *commands[1:], f"select {self.name}",
            f"write_json -selected {self.key}.json"]) + "\n"

    def mapped(self, folder: Path) -> Mapped:
        content = json.loads((folder / f"{self.key}.json").read_text())
        cells = Counter({("child", self.children[kind]) if kind in self.children else ("cell", kind): count
                         for kind, count in content["cells"].items()})
        return Mapped(cells, self.children, content["pairs"], folder / f"{self.key}.netlist.gz")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _ports(text: str) -> str:
    return "\n".join(re.findall(r"^  wire [^\n]*\b(?:input|output|inout) \d+ [^\n]*$", text, re.MULTILINE))


def add_up(mapped: dict, top: str, per_block: bool = True) -> Resources:
    """Resources of a design from `synthesize_rtlil`: each module times its instances below `top`."""
    totals = {}

    def total(name: str) -> Counter:
        if name not in totals:
            totals[name] = own = Counter(pairs=mapped[name].pairs)
            for (kind, what), count in mapped[name].cells.items():
                if kind == "cell":
                    own[what] += count
                else:
                    for primitive, inside in total(what).items():
                        own[primitive] += inside * count
        return totals[name]

    blocks = Counter()
    if per_block:
        blocks = {"top: connections": Counter()}
        blocks["top: connections"]["pairs"] = mapped[top].pairs
        for (kind, what), count in mapped[top].cells.items():
            label = "top: connections" if kind == "cell" else block_label(what.split(".", 1)[-1])
            inside = {what: 1} if kind == "cell" else total(what)
            blocks.setdefault(label, Counter()).update({p: n * count for p, n in inside.items()})
    listed = sorted(((name, _resources(count)) for name, count in blocks.items()), key=lambda pair: -pair[1].lut)
    whole = _resources(total(top))
    return replace(whole, blocks=tuple(listed))


def block_label(name: str) -> str:
    """The block of the report that a module directly below the top belongs to."""
    name = re.sub(r"_of_slice_\d+$", "", name.split("$")[0])
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
        elif kind == "pairs":
            counts["pairs"] += number
        elif kind not in FREE:
            raise SynthesisError(f"Yosys used a {kind}, whose cost is not in the table; add it in {__name__}")
    return Resources(**counts)
