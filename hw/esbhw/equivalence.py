"""Proves that the primitives of a target compute what the plain RTL does, for every input and every cycle.

    python -m esbhw.equivalence ENGINE [ENGINE.json ...] [--out FILE.json]

Only shared modules (target.py) differ between targets; all other modules must be equal word for word. Each shared module
is proven by itself, with the shared modules inside it cut out, so that what they take becomes an output and what they
give an input. Both versions have the same registers by name. Yosys proves for each register, and each row of an adder,
that its next value is the same function of inputs and registers (equiv_make, equiv_simple), with the models of LUT6_2,
CARRY8 and RAM32M16 that Yosys ships. Equal registers at the start then stay equal for good. LUT RAM is proven over all
inputs of three cycles from the empty memory (write, write or read, read), not by induction.
"""

import argparse
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
BY_REGISTERS = """equiv_make gold gate equiv
hierarchy -top equiv
equiv_simple -undef
equiv_status -assert"""
# A RAM block's words have no names of their own. From empty memories, whatever is written and read in MEMORY_CYCLES.
MEMORY_CYCLES = 3
RAM_BITS = 14  # of a RAM32M16
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
    list of (module, "equal text", "proven" or, for a wide LUT RAM, "proven at 14 bits")

    Raises
    ------
    NotEqual
        naming the module.
    esbhw.yosys.YosysError
        if there is no Yosys.
    """
    plain, special = Target("generic"), Target(target)
    if _renumbered(elaborate_top(config, plain)) != _renumbered(elaborate_top(config, special)):
        raise NotEqual("the engine's own modules depend on the target, where only shared modules may")
    known = set() if known is None else known
    results, done = [], set()
    while len(done) < len(plain.definitions):
        for name in [*plain.definitions]:
            if name in done:
                continue
            done.add(name)
            begun = time.monotonic()
            component = _narrowed(plain.definitions[name])
            how = "proven" if component is plain.definitions[name] else f"proven at {component.width} bits"
            gold, gate = (_text(component, label, target) for target, label in ((plain, "gold"), (special, "gate")))
            if gold == gate.replace("gate", "gold"):
                results.append((name, "equal text"))
                continue
            if (gold, gate) not in known:
                _prove(name, component, plain, gold, gate)
                known.add((gold, gate))
            results.append((name, how))
            if progress:
                progress(name, time.monotonic() - begun)
    return results


def _renumbered(text: str) -> str:
    """With the numbers that Amaranth gives to ports between modules counted anew, in the order of the text."""
    numbers = {}
    return re.sub(r"\\port\$(\d+)\$", lambda match: f"\\port${numbers.setdefault(match[1], len(numbers))}$", text)


def _text(component, label: str, target: Target) -> str:
    return back_rtlil.convert(component, name=label, platform=target, emit_src=False)


def _narrowed(component):
    """A wide LUT RAM is many RAM32M16 side by side: one of them, or two ports, stand for all."""
    if isinstance(component, LutRam) and component.width > RAM_BITS:
        return LutRam(RAM_BITS)
    if isinstance(component, LutRamPorts) and component.ports > 2:
        return LutRamPorts(component.width, 2)
    return component


def _prove(name: str, component, target: Target, gold: str, gate: str) -> None:
    inside = sorted(set(re.findall(r"^  cell \\(\w+) ", gold, re.MULTILINE)) & set(target.definitions))
    with tempfile.TemporaryDirectory(prefix="equivalence-", dir=Path.cwd()) as folder:
        folder = Path(folder)
        (folder / "gold.il").write_text(gold)
        (folder / "gate.il").write_text(gate)
        (folder / "stubs.il").write_text("".join(_stub(child, target) for child in inside) or "# none\n")
        memory = isinstance(component, (LutRam, LutRamPorts))
        (folder / "prove.ys").write_text(PROOF.format(method=BY_CYCLES if memory else BY_REGISTERS))
        try:
            yosys.require().run("prove.ys", folder)
        except yosys.YosysError as error:
            raise NotEqual(f"module {name} is not proven equal: {error}") from None


def _stub(name: str, target: Target) -> str:
    text = _text(target.definitions[name], name, Target(target.name))
    body = re.search(rf"^module \\{name}\n.*?^end$", text, re.MULTILINE | re.DOTALL).group(0)
    ports = re.findall(r"^  wire [^\n]*\b(?:input|output) \d+ [^\n]*$", body, re.MULTILINE)
    return "attribute \\blackbox 1\nmodule \\{}\n{}\nend\n".format(name, "\n".join(ports))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="+", metavar="ENGINE")
    parser.add_argument("--out", metavar="FILE")
    arguments = parser.parse_args()
    record, known = {}, set()
    for name in arguments.engines:
        begun = time.monotonic()
        print(f"{name}:", file=sys.stderr)
        found = prove(engine(name), progress=lambda module, seconds: print(f"  {module} {seconds:.0f} s", file=sys.stderr),
                      known=known)
        record[name] = {"modules": dict(found), "seconds": round(time.monotonic() - begun)}
    content = {"command": f"python -m esbhw.equivalence {' '.join(arguments.engines)}",
               "yosys": yosys.require().version, "engines": record}
    if arguments.out:
        write_json(Path(arguments.out), content)
    print(json.dumps(content, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
