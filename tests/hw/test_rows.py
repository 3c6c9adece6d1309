"""Structures of LUTs and carry chains, proven equal to their plain twins by Yosys with the open models of the primitives."""

from amaranth import Module, Signal, signed
from amaranth.back import rtlil
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from esbhw import yosys
from esbhw.fabric.comparator import greater
from esbhw.fabric.multiplier_rows import digit_row
from esbhw.target import Target


class DigitRow(wiring.Component):
    def __init__(self, addend, multiplicand):
        super().__init__({"addend": In(addend), "multiplicand": In(multiplicand), "digit": In(3),
                          "o": Out(len(Signal(multiplicand)) + 3)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(digit_row(m, platform, self.addend, self.multiplicand, self.digit, "row"))
        return m


class Greater(wiring.Component):
    def __init__(self, width):
        super().__init__({"a": In(width), "b": In(width), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(greater(m, platform, self.a, self.b, "row"))
        return m


def prove(folder, components) -> None:
    """Raises if for some input the two elaborations of a component differ."""
    script = ""
    for number, component in enumerate(components):
        for name, target in (("plain", "generic"), ("mapped", "xilinx")):
            text = rtlil.convert(component(), name=name, platform=Target(target), emit_src=False)
            (folder / f"{name}{number}.il").write_text(text)
        script += (
            f"design -reset\nread_rtlil mapped{number}.il\nread_verilog +/xilinx/cells_sim.v\n"
            f"hierarchy -top mapped\nproc\nflatten\nopt -full\nread_rtlil plain{number}.il\nproc\nopt -full\n"
            "miter -equiv -flatten plain mapped both\n"
            f"tee -o proof{number}.log sat -verify -prove trigger 0 -set-def-inputs both\n")
    (folder / "prove.ys").write_text(script)
    yosys.require().run("prove.ys", folder)
    for number in range(len(components)):
        assert "SAT proof finished - no model found: SUCCESS!" in (folder / f"proof{number}.log").read_text()


def test_the_rows_of_a_multiplier_equal_their_sums(tmp_path):
    prove(tmp_path, [lambda shape=shape: DigitRow(*shape) for shape in (
        (30, 28), (30, signed(28)), (14, signed(12)), (1, 16), (6, signed(4)))])


def test_comparisons_equal_their_signs(tmp_path):
    prove(tmp_path, [lambda width=width: Greater(width) for width in (42, 43, 5)])


def test_a_row_is_a_sum_of_integers():
    """The twin itself: addend + digit * multiplicand + 2**(n+1), for all small operands."""
    for shape in (4, signed(4)):
        row = DigitRow(6, shape)
        wrong = []

        async def bench(ctx, row=row, shape=shape, wrong=wrong):
            for a in (range(16) if shape == 4 else range(-8, 8)):
                for addend in (0, 1, 31, 63):
                    for code in range(8):
                        ctx.set(row.multiplicand, a)
                        ctx.set(row.addend, addend)
                        ctx.set(row.digit, code)
                        digit = -2 * (code >> 2) + (code >> 1 & 1) + (code & 1)
                        if ctx.get(row.o) != addend + digit * a + 32:
                            wrong.append((a, addend, digit))

        simulator = Simulator(row)
        simulator.add_testbench(bench)
        simulator.run()
        assert not wrong
