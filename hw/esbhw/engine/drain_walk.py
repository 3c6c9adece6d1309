"""The order in which a drain takes its values, and where they lie."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import DIGIT_BITS, EngineConfig
from esbflow.requantizer import ACCUMULATOR_CYCLES
from esbhw.engine.fields import instruction_layout
from esbhw.fabric.adder_rows import add_row, gated, plain

POSITION_BITS = 12
"""Of a window's place: a window begins on the map or, where rows are filled up to a beat, less than 128 pixels behind."""


class DrainWalk(wiring.Component):
    """Loops, outermost first: digit, plane, row, column, lane group, window row, window column.

    A step in one cycle moves to the next value in the next cycle. Each loop knows in a register that it
    is at its last value, so that no path goes through a comparison and a carry.

    Members
    -------
    now : In(DRAIN), still from the cycle before `start` until the walk has ended;  start : In(1), before the first step
    step : In(1)
    first, last : Out, of a window;  digit : Out, of the output;  tile_group : Out, lane group of the tile
    end_of_run, end_of_plane, end_of_digit, end : Out, the value is the last of a run of beats that is consecutive in memory,
        of a plane, a digit, of all
    last_plane, last_digit : Out, the value is in the last plane, of the last digit
    acc_index : Out, ACCUMULATOR_CYCLES after the step;  pixel : Out(20), number of the output pixel within the digit
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
        config, step, start = self._config, self.step, self.start
        now = Signal(instruction_layout("DRAIN", config))
        m.d.comb += now.eq(self.now)

        def loop(name, width, limit, advance):
            """Is this loop at its last value?"""
            # Counts up to -2: a carry chain that subtracts would take a LUT a bit more.
            turn, last = Signal(width, name=f"{name}_turn"), Signal(name=f"last_{name}")
            with m.If(start | advance):
                m.d.sync += [turn.eq(turn + 1), last.eq(turn == (1 << width) - 3)]
                with m.If(start | last):
                    m.d.sync += [turn.eq(~limit), last.eq(limit == 1)]
            return last

        def count(width, advance, last, name):
            """How often a loop has advanced."""
            index = Signal(width, name=name)
            with m.If(start | advance):
                m.d.sync += index.eq(index + 1)
                with m.If(start | last):
                    m.d.sync += index.eq(0)
            return index

        groups = config.lane_groups
        group_bits = (groups - 1).bit_length()
        last_kx = loop("kx", 4, now.kernel_x, step)
        last_ky = loop("ky", 4, now.kernel_y, step & last_kx)
        last_tap = last_kx & last_ky
        last_group = loop("group", groups.bit_length(), groups, step & last_tap) if group_bits else Const(1, 1)
        end_of_col = last_tap & last_group
        last_col = loop("col", 10, now.out_cols, step & end_of_col)
        end_of_row = end_of_col & last_col
        last_row = loop("row", 10, now.out_rows, step & end_of_row)
        end_of_plane = end_of_row & last_row
        planes = config.planes_per_tile
        last_plane = loop("plane", planes.bit_length(), now.planes, step & end_of_plane) if planes > 1 else Const(1, 1)
        end_of_digit = end_of_plane & last_plane
        digits = now.digits if config.digit_bits == DIGIT_BITS else Cat(now.digits, now.digits == 0)
        last_digit = loop("digit", len(digits), digits, step & end_of_digit)
        several = Signal()  # runs in a plane, a row each
        m.d.sync += several.eq(now.segments != 1)
        kx = count(4, step, last_kx, "kx")
        ky = count(4, step & last_kx, last_ky, "ky")
        digit = count(self._digit_bits, step & end_of_digit, last_digit, "digit")
        group = count(group_bits, step & last_tap, last_group, "group")
        plane = count((planes - 1).bit_length(), step & end_of_plane, last_plane, "plane")
        pixel = count(20, step & end_of_col, end_of_digit, "pixel")
        with m.If(start | step):
            m.d.sync += self.first.eq(start | last_tap)
        m.d.comb += [
            self.last.eq(last_tap), self.digit.eq(digit), self.tile_group.eq(Cat(group, plane)), self.pixel.eq(pixel),
            self.end_of_run.eq(end_of_row & (last_row | several)), self.end_of_plane.eq(end_of_plane),
            self.end_of_digit.eq(end_of_digit),
            self.end.eq(end_of_digit & last_digit), self.last_plane.eq(last_plane), self.last_digit.eq(last_digit),
        ]

        def position(name, offset, stride, pad, size, advance, restart):
            """A coordinate of the map, clamped to it, two cycles after the step."""
            base = Signal(signed(POSITION_BITS), name=f"{name}_base")
            with m.If(start | advance):
                m.d.sync += base.eq(Mux(start | restart, -pad, base + stride))
            place = Signal(signed(POSITION_BITS), name=f"{name}_place", reset_less=True)
            largest = Signal(10, name=f"{name}_largest", reset_less=True)
            clamped = Signal((config.tile_pixels - 1).bit_length(), name=f"{name}_clamped", reset_less=True)
            m.d.sync += [
                place.eq(base + offset), largest.eq(size - 1),
                clamped.eq(Mux(place[-1], 0, Mux(place[:-1] > largest, largest, place[:-1]))),
            ]
            return clamped

        x = position("x", kx, now.stride_x, now.pad_x, now.acc_cols, step & end_of_col, last_col)
        y = position("y", ky, now.stride_y, now.pad_y, now.acc_rows, step & end_of_row, last_row)
        # With the coordinates: the next instruction may be here before the last pixel's address is.
        cols = Signal(len(now.acc_cols), name="cols_0", reset_less=True)
        cols_here = Signal(len(now.acc_cols), name="cols_1", reset_less=True)
        m.d.sync += [cols.eq(now.acc_cols), cols_here.eq(cols)]
        self._index(m, platform, y, x, cols_here, group)
        return m

    def _index(self, m, platform, y, x, cols, group) -> None:
        """acc_index, three cycles later: (y * cols + x) * accumulators_per_pixel modulo the depth, and of the pixel's
        accumulators the one that holds the group of lanes of ACCUMULATOR_CYCLES ago."""
        bits = len(y)

        def register(value, name):
            q = Signal(len(value), name=name, reset_less=True)
            m.d.sync += q.eq(value)
            return q

        rows = []
        for k in range(0, bits, 2):
            terms = [gated(cols[:bits - k], y[k])]
            if k + 1 < bits:
                terms.append(gated(cols[:bits - k - 1], y[k + 1]).shifted(1))
            total, largest = add_row(m, platform, terms, f"row{k}", bits - k)
            rows.append(plain(register(total, f"row{k}_q"), largest).shifted(k))
        x = register(x, "x_0")
        sums = []
        for part in (rows[:3], rows[3:]):
            if part:
                total, largest = add_row(m, platform, part, f"sum{len(sums)}", bits)
                sums.append(plain(register(total, f"sum{len(sums)}_q"), largest))
        total, _ = add_row(m, platform, [*sums, plain(register(x, "x_1"))], "index", bits)
        index = total
        if self._config.accumulators_per_pixel > 1:
            turn = group[(self._config.cols // self._config.requantize_lanes - 1).bit_length():]
            for i in range(ACCUMULATOR_CYCLES - 1):
                turn = register(turn, f"turn_{i}")
            index = Cat(turn, total)
        m.d.sync += self.acc_index.eq(index)


assert ACCUMULATOR_CYCLES == 5  # place, clamp, rows, sums, index
