"""What can go wrong on the way to an engine and back; each names the cause in one sentence."""

from esbflow.errors import UserError
from esbflow.registers import ERRORS, UNITS


class RuntimeFault(UserError, RuntimeError):
    """Base of everything that the driver raises by itself."""


class ProgramError(RuntimeFault, ValueError):
    """A program file that cannot be used: damaged, of another version, or for another engine."""


class InputError(RuntimeFault, ValueError):
    """Images of the wrong shape, type or number."""


class EngineError(RuntimeFault):
    """The engine did not do its work."""


class EngineMissing(EngineError):
    """The registers do not answer as an engine does."""


class EngineReplaced(EngineError):
    """The engine was reset, or another overlay was loaded, since this driver used it."""


class EngineInUse(EngineError):
    """Somebody else uses the engine: this thread itself, another process, or another program."""


class EngineBusy(EngineError):
    """The engine still owes the bus something and cannot start."""


class LinkError(EngineError):
    """The serial link to the board is gone, or damages what it carries."""


class NoMemory(EngineError, MemoryError):
    """There is no contiguous memory for a program's regions."""


class SensorsMissing(RuntimeFault):
    """The board has no power sensors that PYNQ knows."""


class EngineTimeout(EngineError):
    """The engine neither finished nor reported an error in time."""


class EngineFault(EngineError):
    """The engine stopped with an error code.

    Attributes
    ----------
    code, unit : names as in esbflow.registers.ERRORS and UNITS
    layer : index of the layer, and `layer_name`
    address : bus address concerned, or 0
    """

    def __init__(self, code: int, unit: int, layer: int, layer_name: str, address: int):
        name, text = ERRORS.get(code, (f"code {code}", "an unknown error"))
        self.code = name
        self.unit = UNITS[unit] if unit < len(UNITS) else f"unit {unit}"
        self.layer, self.layer_name, self.address = layer, layer_name, address
        where = f" at bus address 0x{address:x}" if address else ""
        super().__init__(f"the engine stopped in layer {layer} ({layer_name}), unit {self.unit}: {text}{where}")
