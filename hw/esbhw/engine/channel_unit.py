"""The channel unit: 3 x 3 pixels of each channel, weighed and added up, or their maximum; every channel by itself."""

from amaranth import Cat, Module, Signal
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import Component, In, Out

from esbflow import engine_facts as facts
from esbflow.engine_config import AXI_BEAT_BITS, TAP_BITS, EngineConfig
from esbhw.fabric.bit_planes import join_planes, plane_sum
from esbhw.fabric.comparator import greater
from esbhw.fabric.idioms import delayed, register
from esbhw.fabric.luts import exclusive_or, multiplexed
from esbhw.target import share

MAXIMUM_LATENCY = 4


def tap_bits(config: EngineConfig) -> int:
    """Bits of a tap in the unit."""
    planes, magnitude = facts.channel_planes(config)
    return planes + magnitude


def window_layout(config: EngineConfig) -> StructLayout:
    """What comes with a column: which channels of the words it is for, and how many columns their window has."""
    return StructLayout({"part": range(max(2, config.channel_blocks)), "tap_cols": 2, "maximum": 1})


class ChannelLane(Component):
    """One channel: its taps, twice, and the sum of taps * window or the window's maximum, of a column of digits a cycle.

    Sums are those of `fabric.bit_planes`: see `engine_facts.channel_offset`. The maximum is that of digits in offset binary.

    Members
    -------
    column : In(3 * digit_bits), the window's newest column, from the top
    swap : In(1), the taps that were written are active for the column of the following cycle
    write_en : In(1);  taps : In(9 * tap_bits(config)), tap `row * 3 + age`, age 0 being the newest column
    two, three : In(1), a cycle after the column: the maximum is over more than one column, more than two
    maximum : In(1), a cycle before the result
    total : Out(channel_bits), `engine_facts.channel_latency` cycles after the column, less one if channels are chosen
    """

    def __init__(self, config: EngineConfig):
        self._planes, self._magnitude = facts.channel_planes(config)
        self._tap_bits, self._bits = tap_bits(config), facts.channel_bits(config)
        self._latency = facts.channel_latency(config) - (config.channel_unit < config.rows)
        self._digit_bits = config.digit_bits
        super().__init__({
            "column": In(facts.TAP_SIDE * config.digit_bits), "swap": In(1), "write_en": In(1),
            "taps": In(facts.TAPS * self._tap_bits),
            "two": In(1), "three": In(1), "maximum": In(1), "total": Out(self._bits),
        })

    def elaborate(self, platform):
        m = Module()
        largest = delayed(m, self._maximum(m, platform), self._latency - 1 - MAXIMUM_LATENCY, "largest")
        weighed, largest_wide = Signal(self._bits, name="weighed"), Signal(self._bits, name="largest_wide")
        m.d.comb += [weighed.eq(self._sum(m, platform)), largest_wide.eq(largest)]
        chosen = multiplexed(m, platform, "choice", weighed, largest_wide, self.maximum)
        m.d.comb += self.total.eq(register(m, chosen, "chosen"))
        return m

    def _sum(self, m, platform):
        """Taps times window: a column's digits stay for the windows of the next two columns."""
        late_swap = register(m, self.swap, "late_swap")  # magnitudes are used a cycle after signs
        digits, weights = [], []
        for row in range(facts.TAP_SIDE):
            digit = self.column.word_select(row, self._digit_bits)
            for age in range(facts.TAP_SIDE):
                tap = row * facts.TAP_SIDE + age
                if age:
                    digit = register(m, digit, f"digit_{row}_{age}")
                shadow = Signal(self._tap_bits, name=f"shadow_{tap}", reset_less=True)
                with m.If(self.write_en):
                    m.d.sync += shadow.eq(self.taps.word_select(tap, self._tap_bits))
                weight = Signal(self._planes, name=f"weight_{tap}", reset_less=True)
                with m.If(late_swap if self._magnitude else self.swap):
                    m.d.sync += weight.eq(shadow[:self._planes])
                weights.append(weight)
                if not self._magnitude:
                    digits.append(digit)
                    continue
                sign = Signal(name=f"sign_{tap}", reset_less=True)
                with m.If(self.swap):
                    m.d.sync += sign.eq(shadow[self._planes])
                digits.append(register(m, exclusive_or(m, platform, f"flip_{tap}", digit, sign), f"flipped_{tap}"))
        planes = [plane_sum(m, platform, digits, weights, j) for j in range(self._planes)]
        return join_planes(m, platform, planes, facts.TAPS * ((1 << self._digit_bits) - 1), self._magnitude).value

    def _maximum(self, m, platform):
        """Of a column first, which stays for the windows of the next two."""
        def larger(a, b, name):
            above = greater(m, platform, a, b, name, is_signed=False)
            return register(m, multiplexed(m, platform, f"{name}_choice", b, a, above), f"{name}_q")

        top, middle, low = (self.column.word_select(row, self._digit_bits) for row in range(facts.TAP_SIDE))
        column = larger(larger(top, middle, "upper"), register(m, low, "low"), "column_max")
        before = Signal(self._digit_bits, reset_less=True)
        earlier = Signal(self._digit_bits, reset_less=True)
        m.d.sync += [before.eq(column), earlier.eq(before)]
        with m.If(~self.two):
            m.d.sync += before.eq(0)
        with m.If(~self.three):
            m.d.sync += earlier.eq(0)
        return larger(larger(column, before, "pair"), register(m, earlier, "earliest"), "window")


class ChannelUnit(Component):
    """`channel_unit` lanes that take a column of three words a cycle: one output pixel of as many channels a cycle.

    Words come from three activation buffers and lie one above the other on the map. Where the unit is narrower than a word
    it takes the block of channels `part` modulo the blocks in a word. The taps of the next pass are written while this one
    streams, a row of the weight path a cycle: 64 bits a channel, tap t in bits 5t..5t+4.

    Results leave `engine_facts.compute_latency` cycles after their words; no back-pressure, no reset. Taps are in their
    shadow registers, to be swapped, LOAD_LATENCY cycles after they were on the port.

    Members
    -------
    words : In(3 * word_bits), digits in offset binary;  window : In(window_layout(config)), with them
    swap : In(1), as in ChannelLane
    load_en : In(1);  load_index : In(range(max(2, tap_load_cycles)));  load_taps : In(weight_path_beats * 128): the next
        pass's taps
    sums : Out(channel_unit * channel_bits)
    """

    LOAD_LATENCY = 2

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__({
            "words": In(facts.TAP_SIDE * config.word_bits), "window": In(window_layout(config)), "swap": In(1),
            "load_en": In(1), "load_index": In(range(max(2, config.tap_load_cycles))),
            "load_taps": In(config.weight_path_beats * AXI_BEAT_BITS),
            "sums": Out(config.channel_unit * facts.channel_bits(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config, lanes = self._config, self._config.channel_unit
        words = [self.words.word_select(row, config.word_bits) for row in range(facts.TAP_SIDE)]
        window, swap = self.window, self.swap
        if lanes < config.rows:
            blocks = (config.rows // lanes - 1).bit_length()
            words = [register(m, word.word_select(window.part[:blocks], lanes * config.digit_bits), f"chosen_{row}")
                     for row, word in enumerate(words)]
            late = Signal(window_layout(config), name="window_chosen", reset_less=True)
            m.d.sync += late.eq(window)
            window, swap = late, register(m, swap, "swap_chosen")
        two, three = (register(m, window.tap_cols > k, name) for k, name in ((1, "two"), (2, "three")))
        maximum = delayed(m, window.maximum, facts.channel_latency(config) - (lanes < config.rows) - 1, "maximum")

        # The weight path's row, then the lanes that it is for.
        per_row = min(lanes, len(self.load_taps) // TAP_BITS)
        bits = tap_bits(config)
        entries = register(m, Cat(self.load_taps[lane * TAP_BITS + tap * facts.TAP_ENTRY_BITS:][:bits]
                                  for lane in range(per_row) for tap in range(facts.TAPS)), "entries")
        writing = register(m, Cat(self.load_en & (self.load_index == i) for i in range(config.tap_load_cycles)), "writing")
        sums = []
        for k in range(lanes):
            row, place = divmod(k, per_row)
            lane = share(m, platform, f"lane_{k}", "channel_lane", ChannelLane, config)
            m.d.comb += [
                lane.column.eq(Cat(word.word_select(k, config.digit_bits) for word in words)), lane.swap.eq(swap),
                lane.write_en.eq(writing[row]), lane.taps.eq(entries.word_select(place, facts.TAPS * bits)),
                lane.two.eq(two), lane.three.eq(three), lane.maximum.eq(maximum),
            ]
            sums.append(lane.total)
        wait = facts.compute_latency(config) - facts.channel_latency(config)
        m.d.comb += self.sums.eq(delayed(m, Cat(*sums), wait, "sums"))
        return m
