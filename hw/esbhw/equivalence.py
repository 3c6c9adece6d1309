"""Proves that the primitives of a target compute what the plain RTL does, for every input and every cycle.

    python -m esbhw.equivalence ENGINE [ENGINE.json ...] [--record docs/results/equivalence.json]

A module that is equal word for word for both targets needs no proof; each other one, the engine's own and the shared
ones (target.py), is proven by itself. The modules inside it are cut out, so that what they take becomes an output and what
they give an input. Both versions have the same registers by name. Yosys proves for each register, and each row of an adder,
that its next value is the same function of inputs and registers (equiv_make, equiv_simple), with the models of LUT6_2,
CARRY8 and RAM32M16 that Yosys ships. Equal registers at the start then stay equal for good. LUT RAM is proven over all
inputs of three cycles from the empty memory (write, write or read, read), not by induction.
"""

import argparse
import importlib.metadata
import json
import re
import sys
import tempfile
import time
from pathlib import Path

from amaranth.back import rtlil as back_rtlil

from esbflow.engine_config import EngineConfig
from esbflow.engines import engine
from esbflow.files import write_json
from esbhw import yosys
from esbhw.fabric.lut_ram import LutRam, LutRamPorts
from esbhw.generate import elaborate_top
from esbhw.target import Target

PROOF = r"""
read_verilog +/xilinx/cells_sim.v
read_rtlil gold.il
read_rtlil stubs.il
hierarchy -top gold
proc
flatten gold
memory_map
expose -evert gold/c:*
opt_clean gold
design -stash gold
read_verilog +/xilinx/cells_sim.v
read_rtlil gate.il
read_rtlil stubs.il
hierarchy -top gate
proc
flatten gate
opt_expr gate
expose -evert gate/c:*
opt_clean gate
design -stash gate
design -copy-from gold -as gold gold
design -copy-from gate -as gate gate
{method}
"""
# The first equiv_simple stops at signals that both sides share, which is enough for most registers; the second one proves
# the others. Together they take half as long as the second one alone.
BY_REGISTERS = """equiv_make gold gate equiv
hierarchy -top equiv
equiv_simple -undef -short
equiv_simple -undef
equiv_status -assert"""
# A RAM block's words have no names of their own. From empty memories, whatever is written and read in MEMORY_CYCLES.
MEMORY_CYCLES = 3
RAM_BITS = 14  # of a RAM32M16
PROVEN, EQUAL = "proven", "equal text"
BY_CYCLES = f"""miter -equiv -flatten -make_outputs gold gate miter
hierarchy -top miter
sat -verify -set-init-zero -seq {MEMORY_CYCLES} -prove trigger 0 miter"""


class NotEqual(AssertionError):
    """A module differs between two targets; the text ends with what Yosys could not prove."""


def prove(config: EngineConfig, target: str = "xilinx", progress=None, known: set | None = None) -> list:
    """Prove an engine of `target` equal to the plain RTL.

    Parameters
    ----------
    progress : called as progress(module, seconds) after each proof.
    known : texts of pairs that are proven already, and to which new ones are added; for several engines in one go.

    Returns
    -------
    list of (module, "equal text", "proven" or, for LUT RAM, "proven at 14 bits")

    Raises
    ------
    NotEqual
        naming the module.
    esbhw.yosys.YosysError
        if there is no Yosys.
    """
    plain, special = (_all_modules(config, Target(name)) for name in ("generic", target))
    if plain.keys() != special.keys():
        raise NotEqual(f"the targets differ in modules: {', '.join(sorted(plain.keys() ^ special.keys()))}")
    known = set() if known is None else known
    results = []
    for name, (gold, how) in plain.items():
        gate, begun = special[name][0], time.monotonic()
        if gold == gate:
            how = EQUAL
        elif (gold, gate) not in known:
            stubs = [_stub(child, body) for child, (body, _) in plain.items() if f"cell {child} " in gold]
            prove_module(name, gold, gate, stubs, memory=how != PROVEN)
            known.add((gold, gate))
            if progress:
                progress(name, time.monotonic() - begun)
        results.append((name.removeprefix("\\"), how))
    return results


def _all_modules(config: EngineConfig, target: Target) -> dict:
    """Module name -> (its RTLIL, how it is proven where the targets differ)."""
    modules = {name: (body, PROVEN) for name, body in rtlil_modules(elaborate_top(config, target)).items()}
    done = set()
    while len(done) < len(target.definitions):
        for name in [*target.definitions]:
            if name not in done:
                done.add(name)
                component, how = _narrowed(target.definitions[name])
                modules[f"\\{name}"] = shared_module(component, name, target), how
    return modules


def shared_module(component, name: str, target: Target) -> str:
    """RTLIL of a component's module from its header on to its end, modules of its own behind it."""
    modules = rtlil_modules(back_rtlil.convert(component, name=name, platform=target, emit_src=False))
    top = modules.pop(f"\\{name}")
    return top + "".join(f"end\nmodule {inner}\n{body}" for inner, body in modules.items())


def rtlil_modules(text: str) -> dict:
    """Module name -> its RTLIL. Numbers that Amaranth puts behind names count anew in each module, by their order.

    Signals of one name are told apart by numbers that depend on all signals before them. Ports are renamed in the cells
    that instantiate them, too. Wrong names could only fail a proof: two registers that are no pair have unlike inputs.
    """
    names = _counted(re.findall(r"^module (\S+\$\d+)$", text, re.MULTILINE))
    text = re.sub(r"(?m)^(module|  cell) (\S+)", lambda line: f"{line[1]} {names.get(line[2], line[2])}", text)
    modules = {found[1]: found[2] for found in MODULE.finditer(text)}
    ports = {name: _counted(re.findall(PORT, body, re.MULTILINE), "port") for name, body in modules.items()}

    def cell(found):
        renamed = ports.get(found[1], {})
        return re.sub(r"(?m)^(    connect )(\S+)", lambda line: line[1] + renamed.get(line[2], line[2]), found[0])

    result = {}
    for name, body in modules.items():
        body = re.sub(r"(?ms)^  cell (\S+) .*?^  end$", cell, body)
        names = {**_counted({*re.findall(NUMBERED, body)} - {*ports[name]}), **ports[name]}
        result[name] = re.sub(NUMBERED, lambda found, names=names: names[found[0]], body)
    return result


MODULE = re.compile(r"^module (\S+)\n(.*?)^end$", re.MULTILINE | re.DOTALL)
PORT = r"^  wire [^\n]*\b(?:input|output|inout) \d+ (?:signed )?(\S+)$"
NUMBERED = r"\\[^\s$]+\$\d[\d$]*"


def _counted(names, kind: str = "") -> dict:
    """Name with Amaranth's number -> name with a count of those of the same name."""
    counts, result = {}, {}
    for name in sorted((name for name in names if "$" in name), key=_number):
        word = name.split("$")[0]
        counts[word] = counts.get(word, 0) + 1
        result[name] = f"{word}~{kind}{counts[word]}"
    return result


def _number(name: str) -> tuple:
    word, *numbers = name.split("$")
    return word, *map(int, numbers)


def _narrowed(component) -> tuple:
    """(component, how it is proven): a wide LUT RAM is many RAM32M16 side by side, so one, or two ports, stand for all."""
    if not isinstance(component, (LutRam, LutRamPorts)):
        return component, PROVEN
    if isinstance(component, LutRam) and component.width > RAM_BITS:
        component = LutRam(RAM_BITS)
    elif component.ports > 2:
        component = LutRamPorts(component.width, 2)
    return component, f"proven at {component.width} bits"


def prove_module(name: str, gold: str, gate: str, stubs: tuple | list = (), memory: bool = False) -> None:
    """`gold` and `gate` lack their first and last line; `stubs` are whole."""
    with tempfile.TemporaryDirectory(prefix="equivalence-", dir=Path.cwd()) as folder:
        folder = Path(folder)
        (folder / "gold.il").write_text(f"module \\gold\n{gold}end\n")
        (folder / "gate.il").write_text(f"module \\gate\n{gate}end\n")
        (folder / "stubs.il").write_text("".join(stubs) or "# none\n")
        (folder / "prove.ys").write_text(PROOF.format(method=BY_CYCLES if memory else BY_REGISTERS))
        try:
            yosys.require().run("prove.ys", folder)
        except yosys.YosysError as error:
            raise NotEqual(f"module {name} is not proven equal: {error}") from None


def _stub(name: str, body: str) -> str:
    """A module of ports alone, for a cell that is cut out."""
    ports = re.findall(r"^  wire [^\n]*\b(?:input|output) \d+ [^\n]*$", body, re.MULTILINE)
    return "attribute \\blackbox 1\nmodule {}\n{}\nend\n".format(name, "\n".join(ports))


def main() -> int:
    """Prove the engines that the command line names and print or write the record; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="+", metavar="ENGINE")
    parser.add_argument("--record", metavar="FILE", help="write there after each engine; those of other names stay")
    arguments = parser.parse_args()
    path = Path(arguments.record) if arguments.record else None
    record = json.loads(path.read_text()) if path and path.exists() else {}
    known: set = set()
    for name in arguments.engines:
        begun, config = time.monotonic(), engine(name)
        print(f"{name}:", file=sys.stderr)
        found = prove(config, progress=lambda module, seconds: print(f"  {module} {seconds:.0f} s", file=sys.stderr),
                      known=known)
        record[config.name] = {
            "configuration": f"{config.hash:016x}", "command": f"python -m esbhw.equivalence {name}",
            "tools": {"yosys": yosys.require().version, "amaranth": importlib.metadata.version("amaranth")},
            "date": time.strftime("%Y-%m-%d"), "equal_text": sum(how == EQUAL for _, how in found),
            "proven": {module: how for module, how in found if how != EQUAL}, "seconds": round(time.monotonic() - begun)}
        if path:
            write_json(path, record)
        print(json.dumps({config.name: record[config.name]}, indent=2), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
