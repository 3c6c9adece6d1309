"""Which waves of a run are written: the cycles, and the blocks of the engine by their names in engine.v."""

import re
from dataclasses import dataclass
from pathlib import Path

from esbflow.errors import BadValue
from esbflow.suggest import no_such


@dataclass(frozen=True)
class Waves:
    """A VCD file of a run.

    Parameters
    ----------
    path : of the file.
    cycles : (first, last) cycle since the simulator was made; nothing is written before the first or from the last on.
        None: to the end.
    blocks : instances of engine.v with all that they hold, such as "drain" or "array.column_0"; none: the whole engine.
    """

    path: str | Path
    cycles: tuple = (0, None)
    blocks: tuple = ()


def hierarchy(verilog: str) -> dict:
    r"""{module: {instance: module}} of a Verilog text as esbhw.generate writes it.

    >>> hierarchy("module a(x);\n  b one (\n  );\nendmodule\nmodule b(x);\nendmodule")
    {'a': {'one': 'b'}, 'b': {}}
    """
    modules = re.findall(r"^module (\w+)\b(.*?)^endmodule", verilog, re.MULTILINE | re.DOTALL)
    return {name: {instance: module for module, instance in re.findall(r"^  (\w+) (\w+) \($", body, re.MULTILINE)}
            for name, body in modules}


def scopes(verilog: str, top: str, blocks: tuple) -> tuple[str, ...]:
    r"""Hierarchical names, the top module's first, of blocks that are named from the top on.

    Raises
    ------
    BadValue
        if there is no such block, naming the nearest.

    >>> scopes("module a(x);\n  b one (\n  );\nendmodule\nmodule b(x);\nendmodule", "a", ("one",))
    ('a.one',)
    """
    modules = hierarchy(verilog)
    for block in blocks:
        module = top
        for instance in block.split("."):
            if instance not in modules.get(module, {}):
                raise BadValue(no_such("block", block, modules.get(module, {})))
            module = modules[module][instance]
    return tuple(f"{top}.{block}" for block in blocks)
