"""Names that an engineer can read in a waveform or a timing report, and that two engines in one project do not share.

Amaranth numbers what has no name of its own, or one that is taken: `port$2611$0`, `fault_address$48`, `counters$509`.
Here every module gets the engine's prefix, and every port, register, memory, instance and named net a plain identifier:

| what | becomes |
|---|---|
| module `esb_engine.load.splitter` | `esb_tiny4x4_load_splitter` |
| net that an instance drives and whose own name is taken | `<instance>_<port>` |
| net without a name at a memory's port | `<memory>_data`, `_address`, `_write_data`, `_write_address` |
| net without a name that is part of a named one | `<name>_<lowest bit>` |
| register or net without a name | `register`, `net` |
| port without a name | what the net is called outside |
| a name of Verilog's or SystemVerilog's | the name and `_` |
| a name that is taken | the name and `_2`, `_3` ... |

Only names change. Synthesis and simulation start from RTLIL before this step.
"""

import re

KEYWORDS = frozenset("""
    accept_on alias always always_comb always_ff always_latch and assert assign assume automatic before begin bind bins
    binsof bit break buf bufif0 bufif1 byte case casex casez cell chandle checker class clocking cmos config const
    constraint context continue cover covergroup coverpoint cross deassign default defparam design disable dist do edge
    else end endcase endchecker endclass endclocking endconfig endfunction endgenerate endgroup endinterface endmodule
    endpackage endprimitive endprogram endproperty endsequence endspecify endtable endtask enum event eventually expect
    export extends extern final first_match for force foreach forever fork forkjoin function generate genvar global
    highz0 highz1 if iff ifnone ignore_bins illegal_bins implements implies import incdir include initial inout input
    inside instance int integer interconnect interface intersect join join_any join_none large let liblist library local
    localparam logic longint macromodule matches medium modport module nand negedge nettype new nexttime nmos nor
    noshowcancelled not notif0 notif1 null or output package packed parameter pmos posedge primitive priority program
    property protected pull0 pull1 pulldown pullup pulsestyle_ondetect pulsestyle_onevent pure rand randc randcase
    randsequence rcmos real realtime ref reg reject_on release repeat restrict return rnmos rpmos rtran rtranif0
    rtranif1 s_always s_eventually s_nexttime s_until s_until_with scalared sequence shortint shortreal showcancelled
    signed small soft solve specify specparam static string strong strong0 strong1 struct super supply0 supply1
    sync_accept_on sync_reject_on table tagged task this throughout time timeprecision timeunit tran tranif0 tranif1 tri
    tri0 tri1 triand trior trireg type typedef union unique unique0 unsigned until until_with untyped use uwire var
    vectored virtual void wait wait_order wand weak weak0 weak1 while wildcard wire with within wor xnor xor
""".split())
_WIRE = re.compile(r"^  wire (?:width (\d+) )?(?:(input|output|inout) \d+ +)?(?:signed )?(\S+)$")
_TOKEN = re.compile(r"(?<=\s)[\\$]\S+")
_PINS = {"$memrd_v2": {"\\DATA": "data", "\\ADDR": "address"},
         "$memwr_v2": {"\\DATA": "write_data", "\\ADDR": "write_address"}}
"""What nets at a memory's ports are called after it."""
_NUMBER = re.compile(r"\$\d+(?=\$|$)")


def readable(text: str, top: str, prefix: str) -> str:
    r"""RTLIL text with the same design under readable names; the module `top` becomes `prefix`, its ports stay.

    >>> text = "module \\t.a$1\n  wire input 0 \\x$2\nend\nmodule \\t\n  cell \\t.a$1 \\a$7\n  end\nend\n"
    >>> print(readable(text, "t", "e"))
    module \e_a
      wire input 0 \x
    end
    module \e
      cell \e_a \a
      end
    end
    <BLANKLINE>
    """
    modules, order = _renamed(text)
    taken = {prefix}
    kinds = {f"\\{top}": prefix}
    for module in modules:
        if module.name not in kinds:
            inner = module.name[1:].removeprefix(f"{top}.")
            kinds[module.name] = _free(f"{prefix}_{_plain(inner)}", taken)
    by_name = {module.name: module for module in order}
    return "\n".join(module.rewritten(kinds, by_name) for module in modules) + "\n"


class Labels:
    """What nets and instances of a design are called in engine.v, for reports on the design before they were renamed.

    Parameters
    ----------
    text : the design's RTLIL.
    """

    def __init__(self, text: str):
        modules, _ = _renamed(text)
        self._names = {module.name: module.names for module in modules}
        self._kinds = {module.name: {name: kind for kind, name, _ in module.cells} for module in modules}

    def label(self, module: str, name: str) -> str:
        r"""The new name of a net, a bit of it, or an instance of `module`; of one further down after "INSTANCE.".

        A name that the module does not have stays as it is.

        >>> labels = Labels("module \\t\n  wire width 9 \\x$2\n  wire \\x\n  cell \\u \\a$7\n  end\nend\n"
        ...                 "module \\u\n  wire \\y$1\nend\n")
        >>> labels.label("t", "x$2[3]"), labels.label("t", "a$7.y$1"), labels.label("t", "z")
        ('x_2[3]', 'a.y', 'z')
        """
        key, own = f"\\{module}", _escaped(name)
        names, kinds = self._names.get(key, {}), self._kinds.get(key, {})
        if own in names:
            return names[own]
        net, bit = re.fullmatch(r"(.*?)(\[\d+\])?", own).groups("")
        if bit and net in names:
            return names[net] + bit
        for dot in re.finditer(r"\.", name):  # flattened, or named by its way
            instance = _escaped(name[:dot.start()])
            if instance in kinds:
                inside = self.label(kinds[instance][1:], name[dot.end():])
                return f"{names[instance]}.{inside}"
        return name


def _escaped(name: str) -> str:
    return name if name.startswith("\\") else f"\\{name}"


def _renamed(text: str) -> tuple:
    """(modules in the text's order, the same with children first), their `names` chosen."""
    modules = [_Module(part) for part in re.findall(r"(?:^attribute [^\n]*\n)*^module .*?^end$", text, re.M | re.S)]
    by_name = {module.name: module for module in modules}
    order = _children_first(by_name)
    hints = _hints(reversed(order), by_name)
    for module in order:
        module.rename(by_name, hints[module.name])
    return modules, order


def identifier(name: str) -> str:
    """A plain Verilog identifier that reads like `name`.

    >>> identifier("table64x64-w4"), identifier("2 by 2"), identifier("end")
    ('table64x64_w4', 'n2_by_2', 'end_')
    """
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "unnamed"
    if plain[0].isdigit():
        plain = f"n{plain}"
    return f"{plain}_" if plain in KEYWORDS else plain


def _plain(name: str) -> str:
    """Without Amaranth's numbers; "" where nothing else is left."""
    left = _NUMBER.sub("", name)
    return "" if left in ("port", "$signal", "ioport", "") or left.startswith("$") else identifier(left)


def _free(name: str, taken: set) -> str:
    """`name`, or with the first number that makes it new; taken from now on."""
    chosen, number = name, 1
    while chosen in taken:
        number += 1
        chosen = f"{name}_{number}"
    taken.add(chosen)
    return chosen


def _hints(parents_first, by_name: dict) -> dict:
    """{module: {port without a name: what the net around an instance is called}}."""
    hints = {name: {} for name in by_name}
    for module in parents_first:
        parts = module.parts({})
        driven = {net.split(" ")[0]: f"{_plain(instance[1:])}_{_plain(port[1:])}"
                  for kind, instance, pins in module.cells if kind in hints for port, net in pins.items()
                  if by_name[kind].directions[port] == "output" and _plain(port[1:])}
        for kind, _, pins in module.cells:
            for port, spec in pins.items() if kind in hints else ():
                net = spec.split(" ")[0]
                label = _plain(net[1:]) if net.startswith("\\") else ""
                label = label or parts.get(net) or hints[module.name].get(net) or driven.get(net)
                if label and not _plain(port[1:]):
                    hints[kind].setdefault(port, label)
    return hints


def _children_first(by_name: dict) -> list:
    order = {}

    def visit(module):
        for kind, _, _ in module.cells:
            if kind in by_name and kind not in order:
                visit(by_name[kind])
        order[module.name] = module

    for module in by_name.values():
        visit(module)
    return list(order.values())


class _Module:
    """One module of RTLIL text: its declarations, its cells' pins and what its named nets are made of."""

    def __init__(self, text: str):
        self.lines = text.split("\n")
        self.name = next(line for line in self.lines if line.startswith("module ")).split()[1]
        self.widths, self.directions, self.memories, self.cells, self.joined = {}, {}, [], [], []
        self.ports, self.registers = [], set()  # ports of memories: (memory, kind of port, pin, net)
        inside = memory = None
        for line in self.lines:
            words = line.split()
            wire = _WIRE.match(line)
            if wire:
                self.widths[wire[3]] = int(wire[1] or 1)
                if wire[2]:
                    self.directions[wire[3]] = wire[2]
            elif line.startswith("  memory "):
                self.memories.append(words[-1])
            elif line.startswith("  cell "):
                inside = (words[1], words[2], {})
                self.cells.append(inside)
            elif line == "  end":
                inside = None
            elif words[:2] == ["parameter", "\\MEMID"]:
                memory = words[2].strip('"')[1:]
            elif inside and words[:1] == ["connect"]:
                inside[2][words[1]] = line.split(maxsplit=2)[2]
                if words[1] == "\\Q":
                    self.registers.add(inside[2][words[1]].split(" ")[0])
                if inside[0] in _PINS:
                    self.ports.append((memory, inside[0], words[1], inside[2][words[1]]))
            elif words[:1] == ["connect"]:
                self.joined.append(line.split(maxsplit=1)[1])

    def rename(self, modules: dict, hints: dict) -> None:
        """Sets `names`, {old name: new name} of wires, memories and instances.

        `modules` : all of them by name, those instantiated here renamed already; `hints` : for ports that have no name.
        """
        own = [name for name in [*self.widths, *self.memories, *(cell[1] for cell in self.cells)] if name.startswith("\\")]
        taken, names = set(), {}
        for name in own:  # a name that is plain already stays, whoever else wants it
            if _plain(name[1:]) == name[1:] and name[1:] not in taken:
                names[name] = _free(name[1:], taken)
        for _, instance, _ in self.cells:
            if instance.startswith("\\") and instance not in names:
                names[instance] = _free(_plain(instance[1:]) or "part", taken)
        parts = self.parts(names)
        driven, fed = (self._pins(modules, names, direction) for direction in ("output", "input"))
        for memory, kind, pin, net in self.ports:
            if pin in _PINS[kind] and self._is_whole(net):
                (driven if pin == "\\DATA" and kind == "$memrd_v2" else fed).setdefault(
                    net.split(" ")[0], f"{names[memory]}_{_PINS[kind][pin]}")
        for name in own:
            if name not in names:
                plain = _plain(name[1:])
                best = driven.get(name) or plain or parts.get(name) or hints.get(name) or fed.get(name)
                names[name] = _free(identifier(best or ("register" if name in self.registers else "net")), taken)
        self.names = names

    def _pins(self, modules: dict, names: dict, direction: str) -> dict:
        """{net: instance_port} of whole nets at instances' pins."""
        return {net.split(" ")[0]: f"{names[instance]}_{modules[kind].names[port]}"
                for kind, instance, pins in self.cells if kind in modules
                for port, net in pins.items()
                if modules[kind].directions.get(port) == direction and self._is_whole(net)}

    def _is_whole(self, spec: str) -> bool:
        name, _, bits = spec.partition(" ")
        width = self.widths.get(name)
        return width is not None and bits in ("", f"[{width - 1}:0]", *(["[0]"] if width == 1 else []))

    def parts(self, names: dict) -> dict:
        """{net: name_lowest} of nets that lie in a named one; the shortest such name."""
        found = {}
        for joined in self.joined:
            target, position = joined.split(" ", 1)[0], 0
            if not _plain(target[1:]) or target.startswith("$"):
                slice_ = re.fullmatch(r"\S+ (\\\S+) \[(?:\d+:)?(\d+)\]", joined)
                if slice_ and _plain(slice_[1][1:]):
                    found.setdefault(target, f"{names.get(slice_[1]) or _plain(slice_[1][1:])}_{slice_[2]}")
                continue
            label = names.get(target) or _plain(target[1:])
            rest = re.sub(r"^\S+ (?:\[[\d:]+\] )?", "", joined)
            low = re.match(r"^\S+ \[(?:\d+:)?(\d+)\] ", joined)
            position = int(low[1]) if low else 0
            for name, bits in reversed(re.findall(r"([\\$]\S+|\d+'\S+)((?: \[[\d:]+\])?)", rest)):
                if name in self.widths and (self._is_whole(name + bits)):
                    whole = position == 0 and self.widths[name] == self.widths.get(target)
                    best = label if whole else f"{label}_{position}"
                    found[name] = min(found.get(name, best), best, key=lambda text: (len(text), text))
                position += self._width(name, bits)
        return found

    def _width(self, name: str, bits: str) -> int:
        if bits:
            high, _, low = bits.strip(" []").partition(":")
            return int(high) - int(low or high) + 1
        return int(name.split("'")[0]) if "'" in name else self.widths.get(name, 1)

    def rewritten(self, kinds: dict, modules: dict) -> str:
        """The module's text under the new names; `kinds` : {module: new name}."""
        own, lines, pins = self.names, [], None

        def rename(text: str) -> str:
            return _TOKEN.sub(lambda token: f"\\{own[token[0]]}" if token[0] in own else token[0], text)

        for line in self.lines:
            words = line.split()
            if line.startswith("module "):
                line = f"module \\{kinds[self.name]}"
            elif line.startswith("  cell "):
                pins = modules[words[1]].names if words[1] in modules else {}
                kind = f"\\{kinds[words[1]]}" if words[1] in kinds else words[1]
                line = f"  cell {kind}{rename(' ' + words[2])}"
            elif line == "  end":
                pins = None
            elif words[:1] == ["parameter"]:
                if words[1] == "\\MEMID":
                    line = f'    parameter \\MEMID "\\\\{own[words[2].strip(chr(34))[1:]]}"'
            elif words[:1] == ["connect"] and pins is not None:
                port = f"\\{pins[words[1]]}" if words[1] in pins else words[1]
                line = f"    connect {port}{rename(' ' + line.split(maxsplit=2)[2])}"
            elif words[:1] != ["attribute"]:
                line = rename(line)
            lines.append(line)
        return "\n".join(lines)
