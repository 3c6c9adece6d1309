"""The requantizer: lanes side by side, and what they share."""

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import DIGIT_BITS, EngineConfig
from esbflow.requantizer import RESIDUAL_BITS
from esbhw.arithmetic.requantize import RequantizeLane, constants_layout
from esbhw.arithmetic.requantizer_control import FORMAT, RequantizerControl
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
    valid, first, last : In, of a window;  format : In(FORMAT);  digit : In(3), which digit is wanted
    constants : In(lanes * constants), residual : In(lanes * 8): with valid
    acc : In(lanes * accumulator_width), Stages.product cycles later
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
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.control = control = RequantizerControl(config, self._early)
        m.d.comb += [
            control.valid.eq(self.valid), control.first.eq(self.first), control.last.eq(self.last),
            control.format.eq(self.format), control.digit.eq(self.digit), self.done.eq(control.done),
        ]
        for number in range(self._lanes):
            lane = share(m, platform, f"lane_{number}", "requantize_lane", RequantizeLane, config, self._acc_signed)
            m.d.comb += [
                lane.enable.eq(control.enable), lane.first.eq(control.held), lane.controls.eq(control.controls),
                lane.constants.eq(self.constants.word_select(number, constants_layout(config).size)),
                lane.residual.eq(self.residual.word_select(number, RESIDUAL_BITS)),
                lane.acc.eq(self.acc.word_select(number, config.accumulator_width)),
                self.digits.word_select(number, DIGIT_BITS).eq(lane.digit),
            ]
        return m
