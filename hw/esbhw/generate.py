"""From an EngineConfig to RTL: `engine.v`, `engine.json`, and what Vivado's catalogue reads beside them."""

import json
import re
from functools import lru_cache
from pathlib import Path

from amaranth.back import rtlil as back_rtlil

from esbflow.engine_config import INTERFACE_VERSION, EngineConfig
from esbflow.files import write_json, write_whole
from esbhw import ipxact, to_verilog
from esbhw.cache import elaborated
from esbhw.engine.engine import Engine
from esbhw.interfaces import CLOCK, attributes
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


@lru_cache(maxsize=4)
def rtlil(config: EngineConfig, target: str = "generic") -> str:
    """The engine as Yosys RTLIL, hierarchical; what simulation and synthesis start from."""
    return elaborated("rtlil", config, target, lambda: _elaborate(config, Target(target)))


def _elaborate(config: EngineConfig, target: Target) -> str:
    return elaborate_top(config, target) + elaborate_definitions(target)


def elaborate_top(config: EngineConfig, target: Target) -> str:
    """RTLIL of all modules of an engine that are not shared."""
    engine = Engine(config)
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


def verilog(config: EngineConfig, target: str = "generic") -> str:
    """The engine as plain Verilog; what goes to Vivado, and (generic) what the engine's benches simulate.

    Modules have the prefix and the top the name config.module_name; see esbhw.names.
    """
    def convert():
        text = _attributed(readable(rtlil(config, target), TOP, config.module_name), config)
        return to_verilog.registers_named(to_verilog.verilog(text, config.module_name))

    return header(config, target) + elaborated(f"verilog by {to_verilog.version()}", config, target, convert)


def header(config: EngineConfig, target: str) -> str:
    """The comment that engine.v starts with: what it is, how to make it again, and the licence."""
    fields = json.dumps(config.to_dict())
    lines = [
        f"{config.module_name}: esbflow engine {config.name}, target {target}.",
        "SPDX-License-Identifier: Apache-2.0",
        f"Interface version {INTERFACE_VERSION}, configuration hash {config.hash:016x}.",
        f"Made by: esbflow rtl --engine engine.json --target {target} --out DIR",
        f"engine.json lies beside this file; a named engine is made by its name as well (--engine {config.name}).",
        *(line.strip() for line in re.findall(r".{1,110}(?:,|$)", f"Configuration: {fields}")),
    ]
    waived = (f"/* verilator lint_off {code} */  // {reason}\n" for code, reason in WAIVED.items())
    return "".join(f"// {line}\n" for line in lines) + "".join(waived)


def _attributed(text: str, config: EngineConfig) -> str:
    """RTLIL in which the top's ports say what interface they belong to, and no module may take a DSP block."""
    lines = {rf"\{port}": "".join(f'  attribute \\{name} "{value}"\n' for name, value in entries)
             for port, entries in attributes(config).items()}
    start = text.index(f"module \\{config.module_name}\n")
    end = text.index("\nend\n", start)
    body = re.sub(r"^  wire [^\n]*(?:input|output) \d+ +(\\\S+)$", lambda wire: lines.get(wire[1], "") + wire[0],
                  text[start:end], flags=re.MULTILINE)
    text = text[:start] + body + text[end:]
    return re.sub(r"^(?=module )", lambda _: 'attribute \\use_dsp "no"\n', text, flags=re.MULTILINE)


def constraints(config: EngineConfig) -> str:
    """The clock for synthesis of the engine by itself; in a block design the clock comes from outside.

    An engine has one clock and a reset that is synchronous to it: there is no false path to declare.
    """
    return (f"# {config.module_name} by itself (out of context), at the stated clock of {config.clock_mhz} MHz.\n"
            f"create_clock -name {CLOCK} -period {1000 / config.clock_mhz:.3f} [get_ports {CLOCK}]\n")


def write(config: EngineConfig, folder: Path, target: str = "xilinx") -> list:
    """Write engine.v of a target, engine.json, component.xml and engine_ooc.xdc into `folder` (made if missing).

    Returns the paths, engine.v and engine.json first.
    """
    folder = Path(folder)
    return [write_whole(folder / "engine.v", verilog(config, target)),
            write_json(folder / "engine.json", manifest(config, target)),
            write_whole(folder / "component.xml", ipxact.component(config, target)),
            write_whole(folder / "engine_ooc.xdc", constraints(config))]
