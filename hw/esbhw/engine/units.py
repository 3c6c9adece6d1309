"""The blocks of an engine, by name, and which of them a run's end resets."""

from amaranth import Module, ResetInserter

from esbflow.engine_config import EngineConfig
from esbhw.engine.accumulators import Accumulators
from esbhw.engine.activation_buffer import ActivationBuffer
from esbhw.engine.array import make_array
from esbhw.engine.channel_unit import ChannelUnit
from esbhw.engine.constants import ConstantBanks
from esbhw.engine.control import Control
from esbhw.engine.counters import Counters
from esbhw.engine.drain import Drain
from esbhw.engine.fault_table import ADDRESSES, FAULTS, LAYERS
from esbhw.engine.faults import FaultEncoder, Watchdog
from esbhw.engine.fetch import Fetch
from esbhw.engine.image_buffer import ImageBuffer
from esbhw.engine.loader import Loader
from esbhw.engine.map_memory import MapMemory
from esbhw.engine.queue import InstructionQueue
from esbhw.engine.residual_buffer import ResidualBuffer
from esbhw.engine.sequencer import Sequencer
from esbhw.engine.tokens import IMAGE, NAMES, Tokens
from esbhw.engine.unfolder import Unfolder
from esbhw.engine.weight_slots import WeightSlots
from esbhw.engine.writer import Writer

WATCHED = 10
"""Signs of progress."""
QUEUED_OPCODES = {"load": "LOAD", "weights": "WEIGHTS", "compute": "PASS", "store": "DRAIN"}
UNFOLD_OPCODES = {"load": ("LOAD", "UNFOLD")}
"""In place of the above where there are image buffers."""


class Slice:
    """What each slice has of its own, beside its part of the array and of the drain's lanes."""

    def __init__(self, config: EngineConfig):
        self.activation_buffer, self.accumulators = ActivationBuffer(config), Accumulators(config)
        self.residual_buffer = ResidualBuffer(config)
        if config.image_beats:
            self.image_buffer = ImageBuffer(config)
        if config.channel_unit:
            self.channel_unit = ChannelUnit(config)
            self.channel_buffer_0, self.channel_buffer_1 = ActivationBuffer(config), ActivationBuffer(config)

    @property
    def activation_buffers(self) -> list:
        """All of the same content."""
        return [unit for name, unit in vars(self).items() if isinstance(unit, ActivationBuffer)]


class Units:
    """All blocks of an engine; `queues` by the unit that they are before, `maps` by port (none without map memories).

    A port outlives a run, since a burst on the bus cannot be taken back; so do registers, counters and maps. All other
    blocks are reset when a run ends.
    """

    def __init__(self, config: EngineConfig):
        self.control, self.counters, self.writer = Control(config), Counters(), Writer(config)
        self.fetch, self.load = Fetch(config), Loader(config, "LOAD", config.activation_ports, config.slices)
        self.weights = Loader(config, "WEIGHTS", config.weight_ports)
        self.maps = [MapMemory(config.map_beats * config.slices_per_port)
                     for _ in range(config.activation_ports if config.map_beats else 0)]
        self.sequencer, self.drain = Sequencer(config), Drain(config)
        self.tokens = Tokens((*NAMES, IMAGE) if config.image_beats else NAMES)
        self.slots, self.array, self.constants = WeightSlots(config), make_array(config), ConstantBanks(config)
        self.watchdog = Watchdog(WATCHED)
        self.unfolder = Unfolder(config) if config.image_beats else None
        self.faults = FaultEncoder(FAULTS, len(ADDRESSES), len(LAYERS))
        opcodes = QUEUED_OPCODES | (UNFOLD_OPCODES if config.image_beats else {})
        self.queues = {unit: InstructionQueue(opcode, config.queue_depth, config) for unit, opcode in opcodes.items()}
        self.slices = [Slice(config) for _ in range(config.slices)]

    def add_to(self, m: Module) -> None:
        """Make all of them submodules."""
        for name, unit in self._lasting().items():
            setattr(m.submodules, name, unit)
        for name, unit in self._of_a_run().items():
            setattr(m.submodules, name, ResetInserter(self.control.stopped)(unit))

    def ports(self) -> list:
        """The AXI ports of all of them."""
        return [self.fetch.port, *self.load.ports, *self.weights.ports, *self.writer.ports]

    def _lasting(self) -> dict:
        """{name: block} of what lives on between runs."""
        return {"control": self.control, "counters": self.counters, **_numbered("write_port", self.writer.ports),
                "program_port": self.fetch.port, **_numbered("activations_port", self.load.ports),
                **_numbered("weights_port", self.weights.ports), **_numbered("map_memory", self.maps)}

    def _of_a_run(self) -> dict:
        """{name: block} of what a run's end resets."""
        names = ("fetch", "load", "weights", "sequencer", "drain", "tokens", "slots", "array", "constants", "watchdog",
                 "writer", *(["unfolder"] if self.unfolder else []), "faults")
        return {**{name: getattr(self, name) for name in names},
                **{f"{unit}_queue": queue for unit, queue in self.queues.items()},
                **{f"{name}{_of_slice(number)}": unit
                   for number, part in enumerate(self.slices) for name, unit in vars(part).items()}}


def _numbered(name: str, blocks: list) -> dict:
    """{NAME, NAME1, NAME2, ...: block}."""
    return {f"{name}{number or ''}": block for number, block in enumerate(blocks)}


def _of_slice(number: int) -> str:
    return f"_of_slice_{number}" if number else ""
