"""Chooses what the error registers say, and notices when nothing moves any more."""

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.registers import UNITS
from esbhw.engine.control import CODES


class Watchdog(wiring.Component):
    """`bark` is high once `limit` cycles have passed without `progress`; a limit of zero never barks.

    Members
    -------
    limit : In(32);  progress : In(1);  bark : Out(1)
    """

    def __init__(self):
        super().__init__({"limit": In(32), "progress": In(1), "bark": Out(1)})

    def elaborate(self, platform):
        m = Module()
        still = Signal(32)
        m.d.sync += still.eq(still + 1)
        with m.If(self.progress):
            m.d.sync += still.eq(0)
        m.d.comb += self.bark.eq((self.limit != 0) & (still >= self.limit))
        return m


class FaultEncoder:
    """A list of (condition, code name, unit, address, layer); the first that holds is reported."""

    def __init__(self):
        self._faults = []

    def add(self, condition, code: str, unit: str, address=0, layer=0):
        self._faults.append((condition, CODES[code], UNITS.index(unit), address, layer))

    def connect(self, m: Module, control) -> None:
        """Drive the error inputs of `control`."""
        faults = iter(self._faults)
        condition, *values = next(faults)
        with m.If(condition):
            self._report(m, control, *values)
        for condition, *values in faults:
            with m.Elif(condition):
                self._report(m, control, *values)

    @staticmethod
    def _report(m, control, code, unit, address, layer):
        m.d.comb += [
            control.error.eq(code), control.error_unit.eq(unit),
            control.error_address.eq(address), control.error_layer.eq(layer),
        ]
