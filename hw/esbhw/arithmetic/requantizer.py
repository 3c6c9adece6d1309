"""The requantizer: lanes side by side, and what they share."""

from amaranth import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import DIGIT_BITS, EngineConfig
from esbflow.requantizer import RESIDUAL_BITS, Stages
from esbhw.arithmetic.function_table import FunctionTable, table_write_layout
from esbhw.arithmetic.requantize import RequantizeLane, constants_layout
from esbhw.arithmetic.requantizer_control import FORMAT, RequantizerControl
from esbhw.fabric.idioms import delayed, register
from esbhw.target import share


class Requantizer(wiring.Component):
    """`requantize_lanes` channels of a pixel a cycle, see RequantizeLane; a window's digit leaves Stages.count cycles after
    its last value. No back-pressure.

    Parameters
    ----------
    lanes : number of lanes; None is the configuration's.
    early : cycles that format and digit come before `valid`.

    Members
    -------
    valid, first, last : In(1), of a window;  format : In(FORMAT);  digit : In(3), which digit is wanted
    constants : In(lanes * constants_layout(config).size);  residual : In(lanes * 8): with valid
    acc : In(lanes * accumulator_width), Stages.product cycles later
    table, upper : In(1), with the format: look levels up, and which half of their entries is wanted (the digit is 0);
        table_write : In(table_write_layout(config)). Only with a function table
    done : Out(1);  digits : Out(lanes * 4)
    """

    def __init__(self, config: EngineConfig, lanes: int | None = None, acc_signed: bool | None = None,
                 early: int = 0):
        self._config, self._acc_signed, self._early = config, acc_signed, early
        self._lanes = config.requantize_lanes if lanes is None else lanes
        super().__init__({
            "valid": In(1), "first": In(1), "last": In(1), "format": In(FORMAT), "digit": In(3),
            "constants": In(self._lanes * constants_layout(config).size), "residual": In(self._lanes * RESIDUAL_BITS),
            "acc": In(self._lanes * config.accumulator_width),
            "done": Out(1), "digits": Out(self._lanes * DIGIT_BITS),
            **({"table": In(1), "upper": In(1), "table_write": In(table_write_layout(config))}
               if config.function_table else {}),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.control = control = RequantizerControl(config, self._early)
        m.d.comb += [
            control.valid.eq(self.valid), control.first.eq(self.first), control.last.eq(self.last),
            control.format.eq(self.format), control.digit.eq(self.digit), self.done.eq(control.done),
        ]
        if config.function_table:
            lookup = Stages(config).lookup
            # `early` and the stages before, as the format's fields; they end at many lanes, and so not in a shift register.
            controls = Cat(self.table, self.upper)
            last = self._early + lookup - 1
            controls = register(m, delayed(m, controls, last, "table"), f"table_{last}", reset_less=False)
        for number in range(self._lanes):
            lane = share(m, platform, f"lane_{number}", "requantize_lane", RequantizeLane, config, self._acc_signed)
            m.d.comb += [
                lane.enable.eq(control.enable), lane.first.eq(control.held), lane.controls.eq(control.controls),
                lane.constants.eq(self.constants.word_select(number, constants_layout(config).size)),
                lane.residual.eq(self.residual.word_select(number, RESIDUAL_BITS)),
                lane.acc.eq(self.acc.word_select(number, config.accumulator_width)),
            ]
            digit = lane.digit
            if config.function_table:
                table = share(m, platform, f"table_{number}", "function_table", FunctionTable, config)
                m.d.comb += [
                    table.enable.eq(control.enable[lookup]), table.level.eq(lane.digit), table.on.eq(controls[0]),
                    table.upper.eq(controls[1]), table.write.eq(self.table_write),
                ]
                digit = table.digit
            m.d.comb += self.digits.word_select(number, DIGIT_BITS).eq(digit)
        return m
