"""From an EngineConfig to RTL: `engine.v`, `engine.json`, and what Vivado's catalogue reads beside them."""

import json
import re
from functools import lru_cache
from pathlib import Path

from amaranth.back import rtlil as back_rtlil

from esbflow.engine_config import INTERFACE_VERSION, EngineConfig
from esbflow.files import write_json, write_whole
from esbhw import crossing_constraints, ipxact, to_verilog
from esbhw.cache import elaborated
from esbhw.engine.engine import Engine
from esbhw.engine.two_clocks import TwoClockEngine, check_mhz
from esbhw.interfaces import CLOCK, COMPUTE_CLOCK, attributes
from esbhw.manifest import manifest
from esbhw.names import readable
from esbhw.target import Target

TOP = "esb_engine"
"""Top module in RTLIL. engine.v's is config.module_name, so that two engines can live in one project."""

WAIVED = {
    "UNUSEDSIGNAL": "every named signal stays, for waveforms and timing reports",
    "PROCASSINIT": "a register starts with its reset value, as the FPGA configures it",
    "WIDTHEXPAND": "a sum is written at the width that its operands need",
    "WIDTHTRUNC": "a shift selects a field of a wider word",
    "CASEOVERLAP": "cases are tried in order",
    "PINMISSING": "an output of a primitive that is not used",
    "CMPCONST": "a limit that a small engine's field cannot exceed",
    "UNSIGNED": "a limit of zero",
    "DECLFILENAME": "all modules of an engine are in one file",
}
"""Warnings of `verilator -Wall` that engine.v has, each with the reason why it is none."""
_OPTION = ("", " with two clocks")
"""What the cache calls an engine of one clock, and of two."""


@lru_cache(maxsize=4)
def rtlil(config: EngineConfig, target: str = "generic", two_clocks: bool = False) -> str:
    """The engine as Yosys RTLIL, hierarchical; what simulation and synthesis start from.

    `two_clocks` : its buses have one clock and its arrays another (esbhw.engine.two_clocks).
    """
    return elaborated(f"rtlil{_OPTION[two_clocks]}", config, target, lambda: _elaborate(config, Target(target), two_clocks))


def _elaborate(config: EngineConfig, target: Target, two_clocks: bool) -> str:
    return elaborate_top(config, target, two_clocks) + elaborate_definitions(target)


def elaborate_top(config: EngineConfig, target: Target, two_clocks: bool = False) -> str:
    """RTLIL of all modules of an engine that are not shared."""
    engine = TwoClockEngine(config) if two_clocks else Engine(config)
    return back_rtlil.convert(engine, name=TOP, platform=target, ports=engine.ports, emit_src=False)


def elaborate_definitions(target: Target) -> str:
    """RTLIL of the modules that a design shares, each once, those that they share included."""
    texts = []
    done = set()
    while len(done) < len(target.definitions):
        for module, component in [*target.definitions.items()]:
            if module not in done:
                done.add(module)
                text = back_rtlil.convert(component, name=module, platform=target, emit_src=False)
                texts.append(text.replace("attribute \\top 1\n", ""))
    return "".join(texts)


def verilog(config: EngineConfig, target: str = "generic", compute_mhz: int | None = None) -> str:
    """The engine as plain Verilog; what goes to Vivado, and (generic) what the engine's benches simulate.

    Modules have the prefix and the top the name config.module_name; see esbhw.names.

    `compute_mhz` : with it the engine has two clocks, and this is what is asked of the arrays'. Only the header names it.
    """
    two_clocks = compute_mhz is not None

    def convert():
        text = _attributed(readable(rtlil(config, target, two_clocks), TOP, config.module_name), config, two_clocks)
        return to_verilog.registers_named(to_verilog.verilog(text, config.module_name))

    what = f"verilog{_OPTION[two_clocks]} by {to_verilog.version()}"
    return header(config, target, compute_mhz) + elaborated(what, config, target, convert)


def header(config: EngineConfig, target: str, compute_mhz: int | None = None) -> str:
    """The comment that engine.v starts with: what it is, how to make it again, and the licence."""
    fields, option = json.dumps(config.to_dict()), f" --compute-clock {compute_mhz}" if compute_mhz else ""
    lines = [
        f"{config.module_name}: esbflow engine {config.name}, target {target}.",
        "SPDX-License-Identifier: Apache-2.0",
        f"Interface version {INTERFACE_VERSION}, configuration hash {config.hash:016x}.",
        f"Made by: esbflow rtl --engine engine.json --target {target}{option} --out DIR",
        f"engine.json lies beside this file; a named engine is made by its name as well (--engine {config.name}).",
        *(line.strip() for line in re.findall(r".{1,110}(?:,|$)", f"Configuration: {fields}")),
    ]
    waived = (f"/* verilator lint_off {code} */  // {reason}\n" for code, reason in WAIVED.items())
    return "".join(f"// {line}\n" for line in lines) + "".join(waived)


def _attributed(text: str, config: EngineConfig, two_clocks: bool) -> str:
    """RTLIL in which the top's ports say what interface they belong to, and no module may take a DSP block."""
    lines = {rf"\{port}": "".join(f'  attribute \\{name} "{value}"\n' for name, value in entries)
             for port, entries in attributes(config, two_clocks).items()}
    start = text.index(f"module \\{config.module_name}\n")
    end = text.index("\nend\n", start)
    body = re.sub(r"^  wire [^\n]*(?:input|output) \d+ +(\\\S+)$", lambda wire: lines.get(wire[1], "") + wire[0],
                  text[start:end], flags=re.MULTILINE)
    text = text[:start] + body + text[end:]
    return re.sub(r"^(?=module )", lambda _: 'attribute \\use_dsp "no"\n', text, flags=re.MULTILINE)


def constraints(config: EngineConfig, compute_mhz: int | None = None) -> str:
    """The clocks for synthesis of the engine by itself; in a block design they come from outside.

    An engine with one clock has a reset that is synchronous to it: there is no false path to declare. What crosses between
    two clocks is constrained by esbhw.crossing_constraints.
    """
    clocks = {CLOCK: config.clock_mhz, **({COMPUTE_CLOCK: compute_mhz} if compute_mhz else {})}
    return (f"# {config.module_name} by itself (out of context), at the stated clock of {config.clock_mhz} MHz.\n"
            + "".join(f"create_clock -name {name} -period {1000 / mhz:.3f} [get_ports {name}]\n"
                      for name, mhz in clocks.items()))


def write(config: EngineConfig, folder: Path, target: str = "xilinx", compute_mhz: int | None = None) -> list:
    """Write engine.v of a target, engine.json, component.xml and engine_ooc.xdc into `folder` (made if missing).

    With `compute_mhz` the engine has a compute clock of its own, and engine_crossings.xdc is written too.

    Returns the paths, engine.v and engine.json first.

    Raises
    ------
    ValueError
        if no engine can have this compute clock; nothing is written then.
    """
    check_mhz(compute_mhz)
    folder = Path(folder)
    paths = [write_whole(folder / "engine.v", verilog(config, target, compute_mhz)),
             write_json(folder / "engine.json", manifest(config, target, compute_mhz)),
             write_whole(folder / "component.xml", ipxact.component(config, target, compute_mhz)),
             write_whole(folder / "engine_ooc.xdc", constraints(config, compute_mhz))]
    crossings = folder / crossing_constraints.FILE
    if compute_mhz:
        paths.append(write_whole(crossings, crossing_constraints.constraints(config, compute_mhz)))
    else:
        crossings.unlink(missing_ok=True)  # of an engine with two clocks that was written here before
    return paths
