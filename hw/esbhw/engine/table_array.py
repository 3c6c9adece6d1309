"""The table array: distributed arithmetic. LUT RAM holds the sums of four weights, activations address them bit by bit."""

from dataclasses import dataclass

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from esbflow import engine_facts as facts
from esbflow.engine_config import CODE_BITS, TABLE_ENTRIES, TABLE_INPUTS, EngineConfig
from esbhw.engine.array import array_signature
from esbhw.engine.codebook import CodebookDecoder
from esbhw.fabric.adder_rows import Term, add_row, add_tree, plain
from esbhw.fabric.idioms import delayed, register
from esbhw.fabric.lut_ram import LutRam
from esbhw.target import share

GROUP_CODES = TABLE_INPUTS * CODE_BITS
GENERATORS = 8
"""Generators of a module; they share RAM blocks for their codebook."""


def entry_bits(config: EngineConfig) -> int:
    """Bits of an entry: a sum of four weights, with the offset that makes it positive."""
    return facts.table_largest(config).bit_length()


class TableRow(Component):
    """The tables of one group of four rows and one bit plane, for all columns, two sets of them.

    One bit of each of four activations chooses an entry; it is on `entries` a cycle later. The set that is not read can
    be written meanwhile: both lie in the 32 words of one LUT RAM.

    Members
    -------
    bits : In(4);  read_set : In(1);  entries : Out(cols * entry_bits(config))
    write_en : In(1);  write_address : In(5), entry and set;  write_data : In(cols * entry_bits(config))
    """

    def __init__(self, config: EngineConfig):
        self._width = config.cols * entry_bits(config)
        super().__init__({
            "bits": In(TABLE_INPUTS), "read_set": In(1), "entries": Out(self._width),
            "write_en": In(1), "write_address": In(TABLE_INPUTS + 1), "write_data": In(self._width),
        })

    def elaborate(self, platform):
        m = Module()
        ram = share(m, platform, "ram", f"lut_ram_{self._width}", LutRam, self._width)
        m.d.comb += [
            ram.write_en.eq(self.write_en), ram.write_address.eq(self.write_address), ram.write_data.eq(self.write_data),
            ram.read_address.eq(Cat(self.bits, self.read_set)),
            self.entries.eq(register(m, ram.read_data, "entries_q")),
        ]
        return m


class TableColumn(Component):
    """Adds the entries of one column: those of a bit plane in a tree, then the planes, each weighed by its bit.

    Members
    -------
    entries : In(digit_bits * (rows // 4) * entry_bits(config)), plane-major;  dot : Out(dot_bits), the trees' levels later
    """

    def __init__(self, config: EngineConfig):
        self._groups = facts.table_groups(config)
        self._largest = facts.table_largest(config)
        self._dot_bits, self._digit_bits = facts.dot_bits(config), config.digit_bits
        super().__init__({
            "entries": In(self._digit_bits * self._groups * self._largest.bit_length()), "dot": Out(self._dot_bits)})

    def elaborate(self, platform):
        m = Module()
        width = self._largest.bit_length()
        planes = []
        for p in range(self._digit_bits):
            entries = []
            for g in range(self._groups):
                entry = Signal(width, name=f"entry_{p}_{g}")
                m.d.comb += entry.eq(self.entries.word_select(p * self._groups + g, width))
                entries.append(plain(entry, self._largest))
            planes.append(add_tree(m, platform, entries, f"plane{p}").shifted(p))
        m.d.comb += self.dot.eq(add_tree(m, platform, planes, "join").value)
        return m


class TableGenerators(Component):
    """Writes tables: from the codes of four weights the 16 sums of them, one a cycle.

    In the order of a Gray code one weight is added or taken off each time, so a generator is an accumulator. Codes are
    kept while a set is written, and the next set's come meanwhile.

    Members
    -------
    write_en : In(count);  codes : In(count * 16), the next set's codes
    begin : In(1), the next set becomes the present one
    select : In(2), weight to add;  subtract : In(1);  first : In(1), begin with the offset alone
    book, book_en : In(1);  book_address : In(5);  book_data : In(weight_bits), as in `array_signature`
    entries : Out(count * entry_bits(config)), LATENCY cycles after `select`
    """

    LATENCY = 3

    def __init__(self, config: EngineConfig, count: int):
        self._count = count
        self._weight_bits = facts.weight_bits(config)
        self._largest = facts.table_largest(config)
        self._offset = -TABLE_INPUTS * config.weight_min
        super().__init__({
            "write_en": In(count), "codes": In(count * GROUP_CODES), "begin": In(1),
            "select": In(2), "subtract": In(1), "first": In(1),
            "book": In(1), "book_en": In(1), "book_address": In(CODE_BITS + 1), "book_data": In(self._weight_bits),
            "entries": Out(count * self._largest.bit_length()),
        })

    def elaborate(self, platform):
        m = Module()
        count, bits = self._count, self._weight_bits
        decoder = share(m, platform, "decoder", f"codebook_{bits}x{count}", CodebookDecoder, bits, count)
        m.d.comb += [
            decoder.write_en.eq(self.book_en), decoder.write_address.eq(self.book_address),
            decoder.write_data.eq(self.book_data), decoder.book.eq(self.book),
        ]
        chosen = []
        for k in range(count):
            waiting = Signal(GROUP_CODES, name=f"waiting_{k}", reset_less=True)
            codes = Signal(GROUP_CODES, name=f"codes_{k}", reset_less=True)
            with m.If(self.write_en[k]):
                m.d.sync += waiting.eq(self.codes.word_select(k, GROUP_CODES))
            with m.If(self.begin):
                m.d.sync += codes.eq(waiting)
            chosen.append(register(m, codes.word_select(self.select, CODE_BITS), f"code_{k}"))
        m.d.comb += decoder.codes.eq(Cat(*chosen))
        subtract = register(m, register(m, self.subtract, "subtract_1"), "subtract_2")
        first = register(m, register(m, self.first, "first_1"), "first_2")
        width = self._largest.bit_length()
        entries = []
        for k in range(count):
            weight = register(m, decoder.digits.word_select(k, bits), f"weight_{k}")
            entry = Signal(width, name=f"entry_{k}", reset_less=True)
            total, _ = add_row(m, platform, [_kept(entry, first), self._change(weight, subtract, first, width)],
                               f"sum_{k}", width, carry=subtract)
            m.d.sync += entry.eq(total)
            entries.append(entry)
        m.d.comb += self.entries.eq(Cat(*entries))
        return m

    def _change(self, weight, subtract, first, width) -> Term:
        """The weight, or its complement; in the first cycle the offset. `subtract` is low then."""
        bits = tuple(
            ((weight[min(i, len(weight) - 1)], subtract, first),
             lambda w, s, f, offset=self._offset >> i & 1: offset if f else w ^ s)
            for i in range(width))
        changed = Cat(*(weight[min(i, len(weight) - 1)] ^ subtract for i in range(width)))
        value = Mux(first, self._offset, changed)
        return Term(value, bits, (1 << width) - 1)


def _kept(value, clear) -> Term:
    """The value, or 0 where `clear` is set."""
    bits = tuple(((value[i], clear), lambda a, f: a & (1 ^ f)) for i in range(len(value)))
    return Term(Mux(clear, 0, value), bits, (1 << len(value)) - 1)


@dataclass(frozen=True, eq=False)
class _Refill:
    """A set's codes come.

    writing : for each row of a set, whether its codes are on the port;  begin : all of a set came;  number : of that set
    """

    writing: Signal
    begin: Signal
    number: Signal


@dataclass(frozen=True, eq=False)
class _Steps:
    """What generators do in this cycle, and which entry they make.

    running : they do;  select, subtract, first : as TableGenerators;  present : the set
    entry : the Gray code of the step whose control is on `select`
    """

    running: Signal
    select: Signal
    subtract: Signal
    first: Signal
    entry: Signal
    present: Signal


class TableArray(Component):
    """rows x cols lanes without multipliers; ports as in `array_signature`.

    sum over rows of activation * weight = sum over bit planes p of 2**p * sum over groups of table[group][bits of plane p].
    Codes of a tile come group by group: code (group * cols + column) * 4 + row % 4. `table_groups` groups at a time go to
    generators, which write the 16 entries of their tables into the set that is not read, while the other works.

    An entry can be read LOAD_LATENCY cycles after the last row of its set's codes was on the port. Latency is
    `engine_facts.array_latency`; one pixel a cycle; no back-pressure.
    """

    LOAD_LATENCY = TABLE_ENTRIES + 6

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__(array_signature(config))

    def elaborate(self, platform):
        m = Module()
        refill = self._refill(m)
        steps = self._steps(m, refill)
        entries = self._generate(m, platform, refill, steps)
        active, address, write_en = self._write_ports(m, refill, steps)
        dots = []
        for number in range(self._config.slices):
            rows = self._tables(m, platform, number, active, address, write_en, entries[number])
            dots += self._columns(m, platform, number, rows)
        m.d.comb += self.dots.eq(Cat(*dots))
        return m

    def _refill(self, m) -> _Refill:
        """Which generators the weight path's row is for; after the last row of a set its tables are written."""
        config = self._config
        set_rows = max(1, config.tile_rows // config.table_sets)
        row_bits = (set_rows - 1).bit_length()
        set_bits = (config.table_sets - 1).bit_length()
        writing = Signal(set_rows)
        begin, number = Signal(), Signal(max(1, set_bits))
        m.d.comb += [writing[i].eq(self.load_en & (self.load_index[:row_bits] == i if row_bits else 1))
                     for i in range(set_rows)]
        m.d.sync += begin.eq(writing[set_rows - 1])
        with m.If(writing[set_rows - 1]):
            m.d.sync += number.eq(self.load_index[row_bits:row_bits + set_bits] if set_bits else 0)
        return _Refill(writing, begin, number)

    @staticmethod
    def _steps(m, refill: _Refill) -> _Steps:
        """A set's 16 steps, one a cycle."""
        step, running = (Signal(bits) for bits in (TABLE_INPUTS, 1))
        select, subtract, first = Signal(2), Signal(), Signal()
        present = Signal(len(refill.number))
        with m.If(refill.begin):
            m.d.sync += [step.eq(1), running.eq(1), first.eq(1), subtract.eq(0), present.eq(refill.number)]
        with m.Else():
            m.d.sync += [step.eq(step + 1), first.eq(0)]
            with m.If(step == 0):
                m.d.sync += running.eq(0)
            # Step i changes bit ctz(i) of the Gray code i ^ i >> 1, which is then the inverse of bit ctz(i) + 1 of i.
            with m.If(step[0]):
                m.d.sync += [select.eq(0), subtract.eq(step[1])]
            with m.Elif(step[1]):
                m.d.sync += [select.eq(1), subtract.eq(step[2])]
            with m.Elif(step[2]):
                m.d.sync += [select.eq(2), subtract.eq(step[3])]
            with m.Else():
                m.d.sync += [select.eq(3), subtract.eq(0)]
        entry = Signal(TABLE_INPUTS)
        m.d.sync += entry.eq(Mux(refill.begin, 0, step ^ step[1:]))
        return _Steps(running, select, subtract, first, entry, present)

    def _generate(self, m, platform, refill: _Refill, steps: _Steps) -> list:
        """The generators' entries, for each slice from registers of its own."""
        config = self._config
        count = config.table_groups * config.cols
        block = min(GENERATORS, count)
        path_groups = config.path_codes // TABLE_INPUTS  # generators that a row of the weight path serves
        made = []
        for k in range(0, count, block):
            generators = share(m, platform, f"generators_{k // block}", f"table_generators_{block}",
                               TableGenerators, config, block)
            served = [divmod(index, path_groups) for index in range(k, k + block)]
            m.d.comb += [
                generators.write_en.eq(Cat(refill.writing[row] for row, _ in served)),
                generators.codes.eq(Cat(self.load_codes.word_select(place, GROUP_CODES) for _, place in served)),
                generators.begin.eq(refill.begin), generators.select.eq(steps.select),
                generators.subtract.eq(steps.subtract), generators.first.eq(steps.first),
                generators.book.eq(self.book), generators.book_en.eq(self.book_en),
                generators.book_address.eq(self.book_address), generators.book_data.eq(self.book_data),
            ]
            made.append(generators.entries)
        return [register(m, Cat(*made), f"entries_q{k or ''}") for k in range(config.slices)]

    def _write_ports(self, m, refill: _Refill, steps: _Steps) -> tuple:
        """(half of the tables' RAM that is read, entry that is written, for each set whether it is written)"""
        sets = self._config.table_sets
        active = Signal()
        with m.If(self.swap):
            m.d.sync += active.eq(~active)
        enables = Signal(sets)
        m.d.comb += [enables[i].eq(steps.running & (steps.present == i)) for i in range(sets)]
        travelling = delayed(m, Cat(steps.entry, enables), TableGenerators.LATENCY + 1, "write", reset_less=False)
        return active, travelling[:TABLE_INPUTS], travelling[TABLE_INPUTS:]

    def _tables(self, m, platform, number: int, active, address, write_en, entries) -> dict:
        """{(bit plane, group): entries of all columns} of a slice."""
        config, groups = self._config, facts.table_groups(self._config)
        width = config.cols * entry_bits(config)
        digits, rows = self.activations.word_select(number, config.word_bits), {}
        for g in range(groups):
            this_set, place = divmod(g, config.table_groups)
            for p in range(config.digit_bits):
                row = share(m, platform, f"table_{number * groups + g}_{p}", "table_row", TableRow, config)
                m.d.comb += [
                    row.bits.eq(Cat(digits[(TABLE_INPUTS * g + j) * config.digit_bits + p] for j in range(TABLE_INPUTS))),
                    row.read_set.eq(active), row.write_en.eq(write_en[this_set]),
                    row.write_address.eq(Cat(address, ~active)),
                    row.write_data.eq(entries[place * width:(place + 1) * width]),
                ]
                rows[p, g] = row.entries
        return rows

    def _columns(self, m, platform, number: int, rows: dict) -> list:
        """The dot products of a slice."""
        config, dots = self._config, []
        width = entry_bits(config)
        for c in range(config.cols):
            column = share(m, platform, f"column_{number * config.cols + c}", "table_column", TableColumn, config)
            m.d.comb += column.entries.eq(Cat(rows[p, g].word_select(c, width) for p in range(config.digit_bits)
                                              for g in range(facts.table_groups(config))))
            dots.append(column.dot)
        return dots
