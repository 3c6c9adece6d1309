"""One module as Yosys mapped it: its primitives, its children and its nets, and how many LUTs could share a LUT6_2.

What a LUT is to the counts: LUT1 to LUT6, an inverter that Yosys leaves, a LUT6_2 that the RTL instantiates.
"""

import gzip
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

PAIRABLE = {"INV": 1, **{f"LUT{n}": n for n in range(1, 6)}}
"""Inputs of the cells that can take half of a LUT6_2."""
O6_ONLY = ("MUXF", "CARRY")
"""A LUT before one of these (of a CARRY: before pin S) has to use output O6, so two of them share no LUT6_2."""


@dataclass(frozen=True)
class Netlist:
    """ports: {name: (direction, bits)}; cells: {name: (type, {port: bits})}; names: {bit: name in the RTL}.

    A bit is a number, or "0", "1" or "x" where a pin is constant. reads: {LUT6_2: {output: the pins that it depends on}}; a
    ternary adder's O5 does not depend on the carry that its O6 takes in, so no path runs through both.
    """

    ports: dict
    cells: dict
    names: dict
    reads: dict = field(default_factory=dict)

    @classmethod
    def from_yosys(cls, content: dict, module: str) -> "Netlist":
        """From what `write_json` wrote of a design."""
        found = content["modules"][module]
        names = {}
        for name, net in found["netnames"].items():
            if net["hide_name"] or name.startswith("$"):
                continue
            name = name.replace("<", "[").replace(">", "]")  # as it is in the RTL: see synthesis.without_brackets
            for i, bit in enumerate(net["bits"]):
                label = name if len(net["bits"]) == 1 else f"{name}[{i}]"
                if isinstance(bit, int) and (bit not in names or len(label) < len(names[bit])):
                    names[bit] = label
        return cls({name: (port["direction"], port["bits"]) for name, port in found["ports"].items()},
                   {name: (cell["type"], cell["connections"]) for name, cell in found["cells"].items()}, names,
                   {name: _reads(int(cell["parameters"]["INIT"], 2), isinstance(cell["connections"]["I5"][0], int))
                    for name, cell in found["cells"].items()
                    if cell["type"] == "LUT6_2"})

    @classmethod
    def load(cls, path: Path) -> "Netlist":
        """What `save` wrote."""
        content = json.loads(gzip.decompress(Path(path).read_bytes()))
        return cls({name: tuple(port) for name, port in content["ports"].items()},
                   {name: tuple(cell) for name, cell in content["cells"].items()},
                   {int(bit): name for bit, name in content["names"].items()}, content["reads"])

    def save(self, path: Path) -> None:
        """Write it as compressed JSON, the same bytes for the same netlist."""
        content = {"ports": self.ports, "cells": self.cells, "names": self.names, "reads": self.reads}
        Path(path).write_bytes(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), compresslevel=3, mtime=0))

    def driven_twice(self) -> str | None:
        """The name of a net that two registers or LUTs drive, if there is one: there is none unless Yosys erred."""
        seen = set()
        for kind, pins in self.cells.values():
            if kind.startswith(("FD", "LUT", "INV", "CARRY")):
                for pin in ("Q", "O", "O5", "O6", "CO"):
                    for bit in pins.get(pin, ()):
                        if isinstance(bit, int) and bit in seen:
                            return self.names.get(bit, f"net {bit}")
                        seen.add(bit)
        return None

    def counts(self) -> Counter:
        """Cells by type, children among them."""
        return Counter(kind for kind, _ in self.cells.values())


def _reads(content: int, choosing: bool = False) -> dict:
    """{output: pins that it depends on} of a LUT6_2, from its INIT. I5 is high, or a signal where it is `choosing`.

    >>> _reads(0xAAAAAAAA_88888888)
    {'O6': ['I0'], 'O5': ['I0', 'I1']}
    >>> _reads(0xAAAAAAAA_88888888, True)
    {'O6': ['I0', 'I1', 'I5'], 'O5': ['I0', 'I1']}
    """
    high, low = ([f"I{k}" for k in range(5)
                  if any((half >> i ^ half >> (i | 1 << k)) & 1 for i in range(32) if not i >> k & 1)]
                 for half in (content >> 32, content & 0xFFFFFFFF))
    return {"O6": [*sorted({*high, *low}), "I5"] if choosing else high, "O5": low}


def lut6_2_pairs(netlist: Netlist) -> int:
    """How many pairs of this module's LUTs a placer could put into one LUT6_2 each; an estimate.

    Greedy: the LUT with most inputs first, it takes the partner that leaves them the fewest inputs together, at most 5;
    partners that share an input with it are looked at first, then any other of the module. Two LUTs that both need output
    O6 are no pair. A LUT6 and an instantiated LUT6_2 stay alone. What a placer reaches is less: it looks at distances too.
    """
    needs_o6 = set()
    for kind, pins in netlist.cells.values():
        if kind.startswith(O6_ONLY):
            for pin, bits in pins.items():
                if pin in ("S", "I0", "I1") and not (kind.startswith("MUXF") and pin == "S"):
                    needs_o6.update(bits)
    luts, bound, by_input = [], [], defaultdict(list)
    for kind, pins in netlist.cells.values():
        if kind in PAIRABLE:
            inputs = frozenset(b for pin, bits in pins.items() if pin != "O" for b in bits if isinstance(b, int))
            for b in inputs:
                by_input[b].append(len(luts))
            luts.append(inputs)
            bound.append(pins["O"][0] in needs_o6)
    free = set(range(len(luts)))
    order = sorted(free, key=lambda i: (-len(luts[i]), i))
    left = []
    for i in order:
        if i not in free:
            continue
        near = {j for b in luts[i] for j in by_input[b] if j in free and j != i and not (bound[i] and bound[j])}
        near = [(len(luts[i] | luts[j]), -len(luts[j]), j) for j in near if len(luts[i] | luts[j]) <= 5]
        if near:
            free -= {i, min(near)[2]}
        else:
            left.append(i)
    paired = len(luts) - len(free)
    # What is left may pair with strangers: only the numbers of inputs and of O6 matter.
    kinds = Counter((len(luts[i]), bound[i]) for i in left if i in free)
    return paired // 2 + _pairs_of_strangers(kinds)


def _pairs_of_strangers(kinds: Counter) -> int:
    """Pairs among LUTs that share no input: {(inputs, needs O6): how many}, the widest first with the widest that fits."""
    pairs = 0
    for size, bound in sorted(kinds, reverse=True):
        for other in sorted(kinds, reverse=True):
            if size + other[0] > 5 or (bound and other[1]):
                continue
            same = other == (size, bound)
            number = kinds[other] // 2 if same else min(kinds[size, bound], kinds[other])
            kinds[size, bound] -= number
            kinds[other] -= number
            pairs += number
    return pairs
