"""The order in which a drain takes its values, and where they lie."""

from dataclasses import dataclass

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import DIGIT_BITS, EngineConfig
from esbflow.requantizer import ACCUMULATOR_CYCLES
from esbhw.engine.fields import instruction_layout
from esbhw.fabric.adder_rows import add_row, gated, plain
from esbhw.fabric.idioms import delayed, register

POSITION_BITS = 12
"""Of a window's place: a window begins on the map or, where rows are filled up to a beat, less than 128 pixels behind."""


@dataclass(frozen=True, eq=False)
class _Ends:
    """What the value at hand is the last of.

    last_X : loop X is at its last value; of "tap" both loops of the window are
    end_of_X : it is the last value of a column, row, plane or digit
    """

    last_kx: Value
    last_ky: Value
    last_tap: Value
    last_group: Value
    end_of_col: Value
    last_col: Value
    end_of_row: Value
    last_row: Value
    end_of_plane: Value
    last_plane: Value
    end_of_digit: Value
    last_digit: Value


class DrainWalk(wiring.Component):
    """Loops, outermost first: digit, plane, row, column, lane group, window row, window column.

    A step in one cycle moves to the next value in the next cycle. Each loop knows in a register that it
    is at its last value, so that no path goes through a comparison and a carry.

    Members
    -------
    now : In(256), the DRAIN, still from the cycle before `start` until the walk has ended
    start : In(1), before the first step;  step : In(1)
    first, last : Out(1), of a window;  digit : Out(3 if digit_bits == 4 else 4), of the output
    tile_group : Out(range(max(2, tile_channels // requantize_lanes))), lane group of the tile
    end_of_run, end_of_plane, end_of_digit, end : Out(1), the value is the last of a run of beats that is consecutive in
        memory, of a plane, a digit, of all
    last_plane, last_digit : Out(1), the value is in the last plane, of the last digit
    acc_index : Out(range(accumulator_depth)), ACCUMULATOR_CYCLES after the step
    pixel : Out(20), number of the output pixel within the digit
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        self._digit_bits = 3 if config.digit_bits == DIGIT_BITS else 4
        super().__init__({
            "now": In(instruction_layout("DRAIN", config).size), "start": In(1), "step": In(1),
            "first": Out(1), "last": Out(1), "digit": Out(self._digit_bits),
            "tile_group": Out(range(max(2, config.tile_channels // config.requantize_lanes))),
            "end_of_run": Out(1), "end_of_plane": Out(1), "end_of_digit": Out(1), "end": Out(1),
            "last_plane": Out(1), "last_digit": Out(1),
            "acc_index": Out(range(config.accumulator_depth)), "pixel": Out(20),
        })

    def elaborate(self, platform):
        m = Module()
        now = Signal(instruction_layout("DRAIN", self._config))
        m.d.comb += now.eq(self.now)
        at = self._loops(m, now)
        kx, ky, group = self._counts(m, now, at)
        x = self._position(m, "x", kx, now.stride_x, now.pad_x, now.acc_cols, self.step & at.end_of_col, at.last_col)
        y = self._position(m, "y", ky, now.stride_y, now.pad_y, now.acc_rows, self.step & at.end_of_row, at.last_row)
        # With the coordinates: the next instruction may be here before the last pixel's address is.
        self._index(m, platform, y, x, delayed(m, now.acc_cols, 2, "cols"), group)
        return m

    def _loop(self, m, name: str, width: int, limit, advance):
        """A loop's register "this is its last value"."""
        # Counts up to -2: a carry chain that subtracts would take a LUT a bit more.
        turn, last = Signal(width, name=f"{name}_turn"), Signal(name=f"last_{name}")
        with m.If(self.start | advance):
            m.d.sync += [turn.eq(turn + 1), last.eq(turn == (1 << width) - 3)]
            with m.If(self.start | last):
                m.d.sync += [turn.eq(~limit), last.eq(limit == 1)]
        return last

    def _count(self, m, width: int, advance, last, name: str) -> Signal:
        """How often a loop has advanced."""
        index = Signal(width, name=name)
        with m.If(self.start | advance):
            m.d.sync += index.eq(index + 1)
            with m.If(self.start | last):
                m.d.sync += index.eq(0)
        return index

    def _loops(self, m, now) -> _Ends:
        """All loops, innermost first; a loop advances where the one inside it is at its last value."""
        config, step = self._config, self.step
        groups, planes = config.lane_groups, config.planes_per_tile
        last_kx = self._loop(m, "kx", 4, now.kernel_x, step)
        last_ky = self._loop(m, "ky", 4, now.kernel_y, step & last_kx)
        last_tap = last_kx & last_ky
        last_group = (self._loop(m, "group", groups.bit_length(), groups, step & last_tap) if groups > 1 else Const(1, 1))
        end_of_col = last_tap & last_group
        last_col = self._loop(m, "col", 10, now.out_cols, step & end_of_col)
        end_of_row = end_of_col & last_col
        last_row = self._loop(m, "row", 10, now.out_rows, step & end_of_row)
        end_of_plane = end_of_row & last_row
        last_plane = (self._loop(m, "plane", planes.bit_length(), now.planes, step & end_of_plane) if planes > 1
                      else Const(1, 1))
        end_of_digit = end_of_plane & last_plane
        digits = now.digits if config.digit_bits == DIGIT_BITS else Cat(now.digits, now.digits == 0)
        last_digit = self._loop(m, "digit", len(digits), digits, step & end_of_digit)
        return _Ends(last_kx, last_ky, last_tap, last_group, end_of_col, last_col, end_of_row, last_row, end_of_plane,
                     last_plane, end_of_digit, last_digit)

    def _counts(self, m, now, at: _Ends) -> tuple:
        """(window column, window row, lane group) of the value at hand; drives the outputs that say where it is."""
        step, planes = self.step, self._config.planes_per_tile
        several = Signal()  # runs in a plane, a row each
        m.d.sync += several.eq(now.segments != 1)
        kx = self._count(m, 4, step, at.last_kx, "kx")
        ky = self._count(m, 4, step & at.last_kx, at.last_ky, "ky")
        digit = self._count(m, self._digit_bits, step & at.end_of_digit, at.last_digit, "digit")
        group = self._count(m, (self._config.lane_groups - 1).bit_length(), step & at.last_tap, at.last_group, "group")
        plane = self._count(m, (planes - 1).bit_length(), step & at.end_of_plane, at.last_plane, "plane")
        pixel = self._count(m, 20, step & at.end_of_col, at.end_of_digit, "pixel")
        with m.If(self.start | step):
            m.d.sync += self.first.eq(self.start | at.last_tap)
        m.d.comb += [
            self.last.eq(at.last_tap), self.digit.eq(digit), self.tile_group.eq(Cat(group, plane)), self.pixel.eq(pixel),
            self.end_of_run.eq(at.end_of_row & (at.last_row | several)), self.end_of_plane.eq(at.end_of_plane),
            self.end_of_digit.eq(at.end_of_digit), self.end.eq(at.end_of_digit & at.last_digit),
            self.last_plane.eq(at.last_plane), self.last_digit.eq(at.last_digit),
        ]
        return kx, ky, group

    def _position(self, m, name: str, offset, stride, pad, size, advance, restart) -> Signal:
        """A coordinate of the map, clamped to it, two cycles after the step."""
        base = Signal(signed(POSITION_BITS), name=f"{name}_base")
        with m.If(self.start | advance):
            m.d.sync += base.eq(Mux(self.start | restart, -pad, base + stride))
        place = Signal(signed(POSITION_BITS), name=f"{name}_place", reset_less=True)
        largest = Signal(10, name=f"{name}_largest", reset_less=True)
        clamped = Signal((self._config.tile_pixels - 1).bit_length(), name=f"{name}_clamped", reset_less=True)
        m.d.sync += [
            place.eq(base + offset), largest.eq(size - 1),
            clamped.eq(Mux(place[-1], 0, Mux(place[:-1] > largest, largest, place[:-1]))),
        ]
        return clamped

    def _index(self, m, platform, y, x, cols, group) -> None:
        """acc_index, three cycles later: (y * cols + x) * accumulators_per_pixel modulo the depth, and of the pixel's
        accumulators the one that holds the group of lanes of ACCUMULATOR_CYCLES ago."""
        bits = len(y)
        rows = []
        for k in range(0, bits, 2):
            terms = [gated(cols[:bits - k], y[k])]
            if k + 1 < bits:
                terms.append(gated(cols[:bits - k - 1], y[k + 1]).shifted(1))
            total, largest = add_row(m, platform, terms, f"row{k}", bits - k)
            rows.append(plain(register(m, total, f"row{k}_q"), largest).shifted(k))
        x = register(m, x, "x_0")
        sums = []
        for part in (rows[:3], rows[3:]):
            if part:
                total, largest = add_row(m, platform, part, f"sum{len(sums)}", bits)
                sums.append(plain(register(m, total, f"sum{len(sums)}_q"), largest))
        total, _ = add_row(m, platform, [*sums, plain(register(m, x, "x_1"))], "index", bits)
        index = total
        if self._config.accumulators_per_pixel > 1:
            turn = group[(self._config.cols // self._config.requantize_lanes - 1).bit_length():]
            index = Cat(delayed(m, turn, ACCUMULATOR_CYCLES - 1, "turn"), total)
        m.d.sync += self.acc_index.eq(index)


assert ACCUMULATOR_CYCLES == 5  # place, clamp, rows, sums, index
