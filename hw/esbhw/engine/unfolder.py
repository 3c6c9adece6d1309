"""The unfolder: carries out UNFOLD, a step a cycle, for all slices alike. What they do with it is in image_buffer.py."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow import instructions
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import SLOT_BYTES, STEP_COUNT, STEP_FIELDS
from esbhw.engine.fields import instruction_layout
from esbhw.fabric.idioms import delayed

STEP_LAYOUT = StructLayout({name: signed(bits) if name == "x" else bits for name, bits in STEP_FIELDS})
X_BITS = dict(STEP_FIELDS)["x"]
SPAN = 2 * SLOT_BYTES
"""Bytes of a pair of beats, as of a slot and the one behind it."""


def slots_in_a_beat(config: EngineConfig) -> int:
    """A plane of 16 bytes' digits is a half of a beat, or a quarter; so many planes there are, too."""
    return 8 // config.digit_bits


def read_layout(config: EngineConfig) -> StructLayout:
    """What the image buffers do; each member comes in the cycle in which it is needed.

    even, odd : beat address of each bank.  turn : bytes to rotate the pair by, two cycles later the two lower bits' worth.
    mask : which bytes count;  ends : the slot is complete;  full : so are the beats of all digits, in the cycle after.
    """
    rows = (config.image_beats // 2 - 1).bit_length()
    return StructLayout({
        "even": rows, "odd": rows, "coarse": 2, "middle": 2, "fine": 1, "mask": SPAN, "valid": 1, "ends": 1,
        "ended": 1, "full": 1, "next": 1,
    })


class Unfolder(wiring.Component):
    """Steps through rows, groups and steps of an UNFOLD; knows where each step's bytes lie and which of them count.

    Accepted in cycle a, its steps are issued from a + 2 on. The last beat of n steps and d digits is written in cycle
    a + n + UNFOLD_LATENCY + d; `post` is high then if `post_full` was given, and `idle` is from then on.

    Members
    -------
    start : In(1), with `fields`, only while idle;  fields : In(256), the instruction
    step_valid : In(1), writes a step;  step_row : In(range(STEP_COUNT));  step : In(STEP_LAYOUT)
    idle : Out(1), and already in the last cycle of an UNFOLD;  post : Out(1)
    field_fault : Out(1), for good, on a count of zero or of more digits than there are, and on a last step that leaves a
        beat incomplete, which would never be written
    read : Out(read_layout(config)), to the image buffers
    write_valid, write_half : Out(1);  write_address : Out(16), to the activation buffers; their data the image buffers give
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__({
            "start": In(1), "fields": In(instructions.INSTRUCTION_BITS),
            "step_valid": In(1), "step_row": In(range(STEP_COUNT)), "step": In(STEP_LAYOUT),
            "idle": Out(1, init=1), "post": Out(1), "field_fault": Out(1), "read": Out(read_layout(config)),
            "write_valid": Out(1), "write_half": Out(1), "write_address": Out(16),
        })

    def elaborate(self, platform):
        m = Module()
        f = Signal(instruction_layout("UNFOLD", self._config))
        begin, running = Signal(), Signal()
        planes = slots_in_a_beat(self._config)
        wrong = Signal()
        with m.If(self.start):
            m.d.sync += [f.eq(self.fields), self.idle.eq(0)]
        m.d.comb += wrong.eq(~f.rows.any() | ~f.groups.any() | ~f.steps.any() | ~f.digits.any() | (f.digits > planes))
        step, last = self._walk(m, f, begin, running)
        self._signs(m, self._places(m, f, step), running, last)
        incomplete = self._last & ~self.read.full
        m.d.sync += [begin.eq(self.start), self.field_fault.eq(self.field_fault | (begin & wrong) | incomplete)]
        self._stores(m, f, begin)
        return m

    def _walk(self, m, f, begin, running) -> tuple:
        """({of the step that is issued in this cycle: its number, and the group's x, y and line}, is it the last?)"""
        step = {"number": Signal(range(STEP_COUNT)), "x": Signal(signed(X_BITS)), "y": Signal(signed(12)),
                "line": Signal(16)}
        loops, inner = {}, Const(1, 1)
        for name, count in (("step", f.steps), ("group", f.groups), ("row", f.rows)):
            left = Signal(len(count), name=f"{name}_left")
            last, once = Signal(name=f"{name}_last"), Signal(name=f"{name}_once")
            m.d.sync += once.eq(count == 1)
            with m.If(begin):
                m.d.sync += [left.eq(count), last.eq(count == 1)]
            with m.Elif(inner):
                m.d.sync += [left.eq(Mux(last, count, left - 1)), last.eq(Mux(last, once, left == 2))]
            inner = inner & last
            loops[name] = last
        with m.If(begin):
            m.d.sync += [running.eq(1), step["number"].eq(f.first), step["x"].eq(f.x), step["y"].eq(f.y),
                         step["line"].eq(f.line)]
        with m.Else():
            m.d.sync += [running.eq(running & ~inner),
                         step["number"].eq(Mux(loops["step"], f.first, step["number"] + 1))]
            with m.If(loops["step"]):
                m.d.sync += step["x"].eq(Mux(loops["group"], f.x, step["x"] + f.x_step))
            with m.If(loops["step"] & loops["group"]):
                m.d.sync += [step["y"].eq(step["y"] + f.y_step), step["line"].eq(step["line"] + f.row_beats)]
        return step, inner & running

    def _places(self, m, f, step):
        """From a step to addresses, rotation and mask; each register is a cycle behind the one before. The result is the
        step's entry.

        Data has no reset: it counts only beside a `running` that has one, and a reset is a level before registers that
        logic clears.
        """
        m.submodules.steps = memory = Memory(shape=unsigned(STEP_LAYOUT.size), depth=STEP_COUNT, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        m.d.comb += [write.en.eq(self.step_valid), write.addr.eq(self.step_row), write.data.eq(self.step),
                     read.addr.eq(step["number"])]
        entry = Signal(STEP_LAYOUT, reset_less=True)
        m.d.sync += entry.eq(read.data)
        x, y, line = (delayed(m, step[name], 1, f"group_{name}") for name in ("x", "y", "line"))

        # -- where it begins
        byte, row = Signal(signed(X_BITS), reset_less=True), Signal(signed(13), reset_less=True)
        beats = Signal(16, reset_less=True)
        m.d.sync += [byte.eq(x + entry.x), row.eq(y + entry.y), beats.eq(line + entry.line)]
        length, place = delayed(m, entry.length, 1, "length"), delayed(m, entry.place, 1, "place")

        # -- which beat, how far from its end; what lies before the line and on its right
        beat, turn = Signal(len(self.read.even) + 1, reset_less=True), Signal(4, reset_less=True)
        m.d.sync += [beat.eq(beats + (byte >> 4)), turn.eq(byte)]
        before = delayed(m, byte[4:], 1, "before")  # whole beats, all ones in the one before the line
        rest, below = Signal(signed(X_BITS + 1), reset_less=True), Signal(signed(13), reset_less=True)
        m.d.sync += [rest.eq(f.width - byte), below.eq(row - f.height)]
        above = delayed(m, row[-1], 1, "above")
        length, place = delayed(m, length, 1, "length_rest"), delayed(m, place, 1, "place_rest")

        # -- addresses; bytes left out on the left, bytes up to the line's end, bytes to rotate by
        m.d.sync += [self.read.even.eq((beat + 1) >> 1), self.read.odd.eq(beat >> 1)]
        left, right, inside, rotation = (
            Signal(bits, name=name, reset_less=True)
            for name, bits in (("left", 5), ("right", 5), ("inside", 1), ("rotation", 5)))
        m.d.sync += [
            left.eq(Mux(before[-1], Mux(before.all(), SLOT_BYTES - turn, SLOT_BYTES), 0)),
            right.eq(Mux(rest[-1], 0, Mux(rest[4:-1].any(), SLOT_BYTES, rest[:4]))),
            inside.eq(~above & below[-1]),
            rotation.eq(Cat(turn, beat[0]) - place),
        ]
        # Whether the line ends before the step does, in three parts: compared as a whole it is too many levels.
        gone, far, close = (Signal(name=name, reset_less=True) for name in ("gone", "far", "close"))
        m.d.sync += [gone.eq(rest[-1]), far.eq(rest[4:-1].any()), close.eq(rest[:4] < length)]
        length, place = delayed(m, length, 1, "length_clip"), delayed(m, place, 1, "place_clip")

        # -- the banks are read; bytes from the first to the end that counts
        m.d.sync += self.read.coarse.eq(rotation[3:])
        middle, fine = delayed(m, rotation[1:3], 1, "middle"), delayed(m, rotation[0], 2, "fine")
        m.d.sync += [self.read.middle.eq(middle), self.read.fine.eq(fine)]
        end, first, place = Signal(5, reset_less=True), delayed(m, left, 1, "first"), delayed(m, place, 1, "place_end")
        m.d.sync += end.eq(Mux(inside, Mux(gone | (~far & close), right, length), 0))

        # -- the same, counted from the slot's beginning
        low, high = Signal(5, reset_less=True), Signal(6, reset_less=True)
        m.d.sync += [low.eq(first + place), high.eq(end + place)]
        m.d.sync += [self.read.mask[k].eq((low <= k) & (high > k)) for k in range(SPAN)]
        return entry

    def _signs(self, m, entry, running, last) -> None:
        """When bytes count, when they complete a slot and a beat, and whether that is the last; these have a reset."""
        m.d.comb += self.read.valid.eq(delayed(m, running, 7, "valid", reset_less=False))
        ends = delayed(m, entry.ends & delayed(m, running, 1, "ran", reset_less=False), 6, "ends", reset_less=False)
        m.d.comb += self.read.ends.eq(ends)
        ended = delayed(m, ends, 1, "ended", reset_less=False)
        part_bits = (slots_in_a_beat(self._config) - 1).bit_length()
        part, full = Signal(part_bits), Signal()
        with m.If(ended):
            m.d.sync += part.eq(part + 1)
        m.d.sync += full.eq(ended & part.all())
        m.d.comb += [self.read.ended.eq(ended), self.read.full.eq(full)]
        self._last = delayed(m, last, 9, "last", reset_less=False)

    def _stores(self, m, f, begin) -> None:
        """The beats of each digit, one a cycle, and the end."""
        at, left, ending = Signal(16), Signal(3), Signal()
        only, done, ends = Signal(), Signal(), Signal()
        with m.If(self.read.full):
            m.d.sync += [self.write_address.eq(at), at.eq(at + 1), left.eq(f.digits), only.eq(f.digits == 1),
                         self.write_valid.eq(1), ending.eq(self._last)]
            m.d.comb += ends.eq((f.digits == 1) & self._last)
        with m.Else():
            m.d.sync += [self.write_address.eq(self.write_address + f.plane_step), left.eq(left - 1), only.eq(left == 2),
                         self.write_valid.eq(self.write_valid & ~only)]
            m.d.comb += ends.eq(self.write_valid & ~only & (left == 2) & ending)
            with m.If(begin):
                m.d.sync += at.eq(f.address)
        m.d.comb += [self.write_half.eq(f.half), self.read.next.eq(self.write_valid), self.post.eq(done & f.post_full)]
        m.d.sync += done.eq(ends)
        with m.If(ends):
            m.d.sync += self.idle.eq(1)
