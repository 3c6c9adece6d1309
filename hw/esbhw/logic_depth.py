"""Longest paths from register to register of a whole engine, on the netlists that Yosys mapped. No wire delays, no clock.

What counts:
- A LUT, an inverter that Yosys leaves, a LUT6_2: one level. MUXF7 to MUXF9: none (inside the slice of their LUTs).
- An asynchronous read of LUT RAM, or of a shift register, is a level: from its address, and from its clock.
- Carry bits: places of a CARRY4 or CARRY8 that the carry ripples through. Into place i and out of it as a sum is none.
- FF, block RAM and DSP begin and end paths, and so do the engine's own ports. Clock pins end none; enables and resets do.

Modules are mapped one by one, so a path through ports is composed: every module instance is walked in its place, with what
its neighbours add. `depths` gives the worst path that ends in each instance, by levels and by carry bits.
"""

from collections import defaultdict
from dataclasses import dataclass

from esbflow.errors import BadValue
from esbhw.names import Labels
from esbhw.netlist import Netlist
from esbhw.synthesis import block_label, normalise_ports, split_modules

MAX_LEVELS = 3
MAX_CARRY = 48
"""The planning clock's rule: no path of a named engine is to have more."""
_MORE = 1 << 16  # weight of the number that counts first; the other one breaks ties
_CLOCKS = {"C", "CLK", "WCLK", "CLKARDCLK", "CLKBWRCLK", "RDCLK", "WRCLK", "CLKA", "CLKB", "G"}
_LUTS = ("LUT", "INV")
_LUTRAM = ("RAM32", "RAM64", "RAM128", "RAM256", "RAM512", "SRL")
_REGISTERS = ("FD", "LD", "RAMB", "FIFO", "URAM", "DSP")
_WIRES = ("MUXF", "BUF")


@dataclass(frozen=True)
class Path:
    """`levels` and `carry` of one path; `start` and `end` as instance.register, `through` the named nets between them."""

    levels: int
    carry: int
    start: str
    end: str
    through: tuple = ()

    def __str__(self) -> str:
        via = f" through {', '.join(self.through)}" if self.through else ""
        return f"{self.levels} levels, {self.carry} carry bits: from {self.start} to {self.end}{via}"


@dataclass(frozen=True)
class Depth:
    """The worst paths that end in a block (or instance): `by_levels` has the most levels, `by_carry` the most carry bits."""

    by_levels: Path
    by_carry: Path

    @property
    def passes(self) -> bool:
        """Whether no path has more than MAX_LEVELS LUTs or ripples through more than MAX_CARRY carry bits."""
        return self.by_levels.levels <= MAX_LEVELS and self.by_carry.carry <= MAX_CARRY

    def to_dict(self) -> dict:
        """As resources.json has it."""
        return {"levels": self.by_levels.levels, "carry": self.by_carry.carry, "longest": str(self.by_levels),
                "longest_carry": str(self.by_carry)}


def depths(mapped: dict, top: str, text: str = "") -> dict:
    """{instance, as in the RTL, "" for the top: Depth} of a design from synthesis.synthesize_rtlil; deepest first.

    `text` : what was synthesized. With it, paths have the names of engine.v in place of Amaranth's numbers.

    Raises
    ------
    ValueError
        if logic runs in a circle without a register, naming a net of it.
    """
    graphs = {module.path: None for module in mapped.values()}  # equal modules share a netlist
    graphs = {path: _Graph(Netlist.load(path)) for path in graphs}
    labels = Labels("\n".join(normalise_ports(split_modules(text)).values()))
    levels, carry = ({instance.name: path for instance, path in _Walk(mapped, graphs, top, by_carry, labels).worst()}
                     for by_carry in (False, True))
    return _deepest_first({name: Depth(levels[name], carry[name]) for name in levels})


def _deepest_first(found: dict) -> dict:
    return dict(sorted(found.items(), key=lambda pair: (-pair[1].by_levels.levels, -pair[1].by_carry.carry, pair[0])))


def by_block(found: dict) -> dict:
    """{block of the report: Depth}, deepest first, from `depths`."""
    blocks = defaultdict(list)
    for name, depth in found.items():
        blocks[block_label(name.split(".")[0]) if name else "top: connections"].append(depth)
    return _deepest_first({
        label: Depth(max((d.by_levels for d in group), key=lambda p: (p.levels, p.carry)),
                     max((d.by_carry for d in group), key=lambda p: (p.carry, p.levels)))
        for label, group in blocks.items()})


class _Graph:
    """A module's netlist as arcs. A node is a bit of a net.

    arcs: {bit: [(bit before, levels, carry)]}, primitives only;  starts: {bit: (levels, register)}
    ends: [(bit, register, pin)];  children: {instance: (type, {port: bits})};  inputs: {bit: (port, index)}
    """

    def __init__(self, netlist):
        self.names = netlist.names
        self.arcs, self.starts, self.ends, self.children = defaultdict(list), {}, [], {}
        self.ports = netlist.ports
        self.inputs = {bit: (name, i) for name, (way, bits) in netlist.ports.items() if way == "input"
                       for i, bit in enumerate(bits)}
        for cell, (kind, pins) in netlist.cells.items():
            self._add(cell, kind, pins, netlist.reads.get(cell))

    def _add(self, cell, kind, pins, reads):
        if kind.startswith("CARRY"):
            self._carry(pins)
        elif kind.startswith(_LUTS + _WIRES):
            levels = 0 if kind.startswith(_WIRES) else 1
            for pin, bits in pins.items():
                if pin in ("O", "O5", "O6"):
                    for other, sources in pins.items():
                        if other in reads[pin] if reads else (other not in ("O", "O5", "O6")
                                                              and (pin, other) != ("O5", "I5")):
                            self.arcs[bits[0]] += [(b, levels, 0) for b in sources if isinstance(b, int)]
        elif kind.startswith(_LUTRAM):
            self._lutram(cell, kind, pins)
        elif kind.startswith(_REGISTERS):
            self._register(cell, kind, pins, 0)
        elif kind not in ("VCC", "GND", "$scopeinfo"):
            self.children[cell] = (kind, pins)

    def _register(self, cell, kind, pins, levels):
        outputs = {pin for pin in pins if _is_output(kind, pin)}
        label = next((self.names[b] for pin in outputs for b in pins[pin] if b in self.names), cell)
        for pin, bits in pins.items():
            for b in bits:
                if not isinstance(b, int) or pin in _CLOCKS:
                    continue
                if pin in outputs:
                    self.starts[b] = (levels, f"{self.names.get(b, label)}")
                else:
                    self.ends.append((b, label, f".{pin}" + ("" if kind.startswith("FD") else f" ({kind})")))

    def _lutram(self, cell, kind, pins):
        self._register(cell, kind, pins, 1)
        for pin, bits in pins.items():
            if _is_output(kind, pin) and pin != "Q31":
                for b in bits:
                    self.arcs[b] += [(a, 1, 0) for port in _read_address(pin) for a in pins.get(port, ())
                                     if isinstance(a, int)]

    def _carry(self, pins):
        for pin, offset in (("O", 0), ("CO", 1)):
            for i, out in enumerate(pins.get(pin, ())):
                if not isinstance(out, int):
                    continue
                for j in range(i + 1):
                    passed = i - j + offset
                    for source in ("S", "DI"):
                        b = pins[source][j]
                        if isinstance(b, int) and (passed or source == "S"):
                            self.arcs[out].append((b, 0, passed))
                for source, place in (("CI", 0), ("CYINIT", 0), ("CI_TOP", 4)):
                    for b in pins.get(source, ()):
                        if isinstance(b, int) and i >= place:
                            self.arcs[out].append((b, 0, i - place + offset))


class _Walk:
    """One measure of length on one design: arrivals of every net, module by module and instance by instance."""

    def __init__(self, mapped: dict, graphs: dict, top: str, by_carry: bool, labels: Labels):
        self._mapped, self._graphs, self._top, self.labels = mapped, graphs, top, labels
        self._units = (1, _MORE) if by_carry else (_MORE, 1)
        self._by_carry = by_carry
        self._summaries, self._arcs, self._arrivals = {}, {}, {}

    def worst(self):
        """(instance, longest path that ends in it) of each instance that a path ends in."""
        root = _Instance("", self._top, None, None, self)
        waiting = [root]
        while waiting:
            instance = waiting.pop()
            ends = [(instance.arrival[bit], -n) for n, (bit, *_) in enumerate(instance.ends) if bit in instance.arrival]
            if ends:
                yield instance, self._path(instance, *instance.ends[-max(ends)[1]])
            waiting += instance.children.values()

    def graph(self, module: str):
        return self._graphs[self._mapped[module].path]

    def child(self, module: str, kind: str) -> str:
        return self._mapped[module].children[kind]

    def arcs(self, module: str):
        """(arcs, starts) of a module with its children in it: {bit: [(bit before, weight)]} and {bit: weight}."""
        if module not in self._arcs:
            graph = self.graph(module)
            arcs = defaultdict(list)
            for bit, before in graph.arcs.items():
                arcs[bit] = [(b, self._weight(levels, carry)) for b, levels, carry in before]
            starts = {bit: self._weight(levels, 0) for bit, (levels, _) in graph.starts.items()}
            for kind, pins in graph.children.values():
                for (port, i), (start, through) in self.summary(self.child(module, kind)).items():
                    if port not in pins or not isinstance(pins[port][i], int):
                        continue
                    bit = pins[port][i]
                    if start is not None:
                        starts[bit] = start
                    arcs[bit] += [(pins[p][k], w) for (p, k), w in through.items() if isinstance(pins[p][k], int)]
            self._arcs[module] = arcs, starts
        return self._arcs[module]

    def summary(self, module: str) -> dict:
        """{(output, index): (longest from a register inside or None, {(input, index): longest from there})}."""
        if module not in self._summaries:
            graph = self.graph(module)
            arcs, _ = self.arcs(module)
            arrival = self.arrival(module, {})
            found = {}
            for port, (way, bits) in graph.ports.items():
                for i, bit in enumerate(bits):
                    if way == "output" and isinstance(bit, int):
                        length = _longest_to(bit, arcs)
                        through = {graph.inputs[b]: weight for b, weight in length.items() if b in graph.inputs}
                        found[port, i] = arrival.get(bit), through
            self._summaries[module] = found
        return self._summaries[module]

    def arrival(self, module: str, inputs: dict) -> dict:
        """{bit: longest path to it} where a path comes to, given that of input bits."""
        key = module, frozenset(inputs.items())
        if key not in self._arrivals:
            arcs, starts = self.arcs(module)
            self._arrivals[key] = _arrivals(arcs, {**starts, **inputs}, self.graph(module).names)
        return self._arrivals[key]

    def _weight(self, levels: int, carry: int) -> int:
        return levels * self._units[0] + carry * self._units[1]

    def _path(self, instance, bit, label, pin) -> Path:
        first, second = divmod(instance.arrival[bit], _MORE)
        levels, carry = (second, first) if self._by_carry else (first, second)
        nets = [instance.called(bit)]
        end = f"{instance.local(label)}{pin}"
        while True:
            graph, length = instance.graph, instance.arrival[bit]
            if bit in graph.inputs and instance.parent is None:
                start = "port " + instance.called(bit)
                break
            if bit in graph.inputs:
                port, i = graph.inputs[bit]
                bit = instance.pins[port][i]
                instance = instance.parent
            elif bit in instance.drivers:
                child, port, i = instance.drivers[bit]
                instance = instance.children[child]
                bit = instance.graph.ports[port][1][i]
            elif bit in graph.starts and self._weight(graph.starts[bit][0], 0) == length:
                start = instance.local(graph.starts[bit][1])
                break
            else:
                bit = next(b for b, levels_, carry_ in graph.arcs[bit]
                           if instance.arrival.get(b, -1) + self._weight(levels_, carry_) == length)
            nets.append(instance.called(bit))
        named = [name for name in dict.fromkeys(reversed(nets)) if name and not {name, f"port {name}"} & {start, end}]
        return Path(levels, carry, start, end, tuple(named))


class _Instance:
    """A module where it stands: `name` from the top, its children, and the arrivals of its nets there."""

    def __init__(self, name, module, parent, pins, walk: _Walk):
        self.name, self.parent, self.pins, self._module, self._walk = name, parent, pins, module, walk
        self._own = name.rpartition(".")[2]
        self.graph = walk.graph(module)
        inputs = {}
        for bit, (port, i) in self.graph.inputs.items():
            if parent is None:
                inputs[bit] = 0
            elif port in pins and pins[port][i] in parent.arrival:
                inputs[bit] = parent.arrival[pins[port][i]]
        self.arrival = walk.arrival(module, inputs)
        self.children, self.drivers = {}, {}
        for cell, (kind, below) in self.graph.children.items():
            child = walk.child(module, kind)
            self.children[cell] = _Instance(f"{name}.{cell}" if name else cell, child, self, below, walk)
            for port, (way, _) in walk.graph(child).ports.items():
                if way == "output":
                    self.drivers.update({bit: (cell, port, i) for i, bit in enumerate(below.get(port, ()))})

    @property
    def ends(self) -> list:
        outputs = [] if self.parent else [(bit, f"port {name}", "") for name, (way, bits) in self.graph.ports.items()
                                          if way == "output" for bit in bits]
        return self.graph.ends + outputs

    def local(self, label: str) -> str:
        """A net, register or instance of this module, from the top."""
        label = self._walk.labels.label(self._module, label)
        return f"{self.parent.local(self._own)}.{label}" if self.parent else label

    def called(self, bit) -> str | None:
        return self.local(self.graph.names[bit]) if bit in self.graph.names else None


def _arrivals(arcs: dict, given: dict, names: dict) -> dict:
    """Longest path to each bit that one of `given` leads to: {bit: weight}."""
    done, open_ = {}, set()
    for target in [*arcs, *given]:
        stack = [target]
        while stack:
            bit = stack[-1]
            if bit in done:
                stack.pop()
                continue
            before = arcs.get(bit, ())
            missing = [b for b, _ in before if b not in done]
            if missing:
                if bit in open_:
                    raise BadValue(f"logic runs in a circle through {names.get(bit, f'net {bit}')}")
                open_.add(bit)
                stack += missing
                continue
            reached = [done[b] + w for b, w in before if done[b] is not None]
            if bit in given:
                reached.append(given[bit])
            done[bit] = max(reached, default=None)
            open_.discard(bit)
            stack.pop()
    return {bit: length for bit, length in done.items() if length is not None}


def _longest_to(target, arcs: dict) -> dict:
    """{bit: longest path from it to `target`} for each bit that leads there."""
    order, seen, stack = [], set(), [(target, False)]
    while stack:
        bit, left = stack.pop()
        if left:
            order.append(bit)
        elif bit not in seen:
            seen.add(bit)
            stack.append((bit, True))
            stack += [(b, False) for b, _ in arcs.get(bit, ()) if b not in seen]
    length = {target: 0}
    for bit in reversed(order):
        for before, weight in arcs.get(bit, ()):
            length[before] = max(length.get(before, 0), length[bit] + weight)
    return length


def _is_output(kind: str, pin: str) -> bool:
    if kind.startswith(_LUTRAM):
        return pin in ("O", "Q", "Q15", "Q31", "SPO", "DPO") or pin.startswith("DO")
    if kind.startswith(("FD", "LD")):
        return pin == "Q"
    if kind.startswith("DSP"):
        return pin in ("P", "PCOUT", "ACOUT", "BCOUT", "CARRYOUT", "CARRYCASCOUT", "MULTSIGNOUT", "OVERFLOW", "UNDERFLOW",
                       "PATTERNDETECT", "PATTERNBDETECT", "XOROUT")
    return pin.startswith(("DOUT", "CASDOUT", "CASDO", "DO", "CASOUT")) or pin in ("EMPTY", "FULL", "SBITERR", "DBITERR")


def _read_address(pin: str) -> tuple:
    """The pins that say asynchronously what a LUT RAM or shift register shows on output `pin`."""
    if pin == "DPO":
        return ("DPRA", *(f"DPRA{i}" for i in range(8)))
    if pin.startswith("DO"):
        return ("ADDR" + pin[2:],)
    return ("A", *(f"A{i}" for i in range(9)))
