"""The engine: this file only connects its blocks and gives its ports their conventional flat names."""

from amaranth import Cat, ClockDomain, Elaboratable, Module, Mux, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Flow

from esbflow import engine_facts as facts
from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import STEP_SHIFT, TABLE_DESTINATION, activation_masters, weight_masters
from esbflow.registers import COUNTERS
from esbhw.engine.accumulators import Accumulators
from esbhw.engine.activation_buffer import ActivationBuffer
from esbhw.engine.array import make_array
from esbhw.engine.axi import read_signature, write_signature
from esbhw.engine.channel_unit import ChannelUnit
from esbhw.engine.constants import ConstantBanks
from esbhw.engine.control import Control, lite_signature
from esbhw.engine.counters import Counters
from esbhw.engine.drain import Drain
from esbhw.engine.faults import FaultEncoder, Watchdog
from esbhw.engine.fetch import UNITS, Fetch
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
from esbhw.fabric.idioms import register

WATCHED = 10
"""Signs of progress."""
BUSES = ("fetch", "load", "weights", "store")
ADDRESSES = (*(("burst", unit) for unit in BUSES), *(("run", unit) for unit in BUSES))
"""What ERROR_ADDRESS may be: of the burst that a port awaits, of the run that a splitter refused."""
LAYERS = ("fetch", "load", "weights", "compute", "field", "store")
"""What ERROR_LAYER may be: of the instruction that a unit is at; "field" is a PASS with a wrong field."""


def _fault(code: str, unit: str, address: tuple | None = None, layer: str | None = None) -> tuple:
    return code, unit, ADDRESSES.index(address) if address else None, LAYERS.index(layer) if layer else None


FAULTS = (
    *(_fault("axi_read", unit, ("burst", unit), unit) for unit in BUSES[:3]),
    _fault("axi_write", "store", ("burst", "store"), "store"),
    *(fault for unit in BUSES[:3] for fault in (_fault("axi_protocol", unit, ("burst", unit), unit),
                                                _fault("range", unit, ("run", unit), unit))),
    _fault("range", "store", ("run", "store"), "store"), _fault("opcode", "fetch", None, "fetch"),
    _fault("field", "load", None, "load"), _fault("field", "weights", None, "weights"),
    _fault("field", "compute", None, "field"), _fault("field", "store", None, "store"), _fault("field", "none"),
    _fault("overflow", "compute", None, "compute"), _fault("end", "fetch", None, "fetch"), _fault("aborted", "none"),
    *(_fault("watchdog", unit, ("burst", unit), unit) for unit in ("store", "load", "weights", "fetch")),
    _fault("watchdog", "compute", None, "compute"),
)
"""(code, unit, which address, which layer); of several in one cycle the first is reported."""
QUEUED_OPCODES = {"load": "LOAD", "weights": "WEIGHTS", "compute": "PASS", "store": "DRAIN"}
UNFOLD_OPCODES = {"load": ("LOAD", "UNFOLD")}
"""In place of the above where there are image buffers."""


class _Slice:
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


def _of_slice(number: int) -> str:
    return f"_of_slice_{number}" if number else ""


class Engine(Elaboratable):
    """A shift-add convolution engine: AXI4-Lite registers, three AXI4 masters, one level interrupt.

    See docs/engine.md for the units, their timing and the memory layout. `ports` lists the flat ports.
    """

    def __init__(self, config: EngineConfig):
        self.config = config
        self.ap_clk = Signal()
        self.ap_rst_n = Signal()
        self.irq = Signal()
        self.ports = [self.ap_clk, self.ap_rst_n, self.irq]
        self.s_axi = self._flat("s_axi", lite_signature())
        self.m_axi_program = self._flat("m_axi_program", read_signature())
        for name in weight_masters(config):
            setattr(self, name, self._flat(name, read_signature()))
        for name in activation_masters(config):
            setattr(self, name, self._flat(name, read_signature()))
            setattr(self, f"{name}_write", self._flat(name, write_signature()))

    def _flat(self, prefix, signature):
        """{member: (signal, is_output)} named as Vivado's interface inference expects."""
        signals = {}
        for name, member in signature.members.items():
            signal = Signal(member.shape, name=f"{prefix}_{name}")
            signals[name] = (signal, member.flow == Flow.Out)
            self.ports.append(signal)
        return signals

    @staticmethod
    def _connect(m, signals, interface):
        for name, (signal, is_output) in signals.items():
            inner = getattr(interface, name)
            m.d.comb += signal.eq(inner) if is_output else inner.eq(signal)

    def elaborate(self, platform):  # noqa: C901 - an option of the configuration each
        m = Module()
        config = self.config
        m.domains.sync = domain = ClockDomain("sync")
        m.d.comb += [domain.clk.eq(self.ap_clk), domain.rst.eq(~self.ap_rst_n)]

        # -- what lives on between runs ----------------------------------------------------------------
        m.submodules.control = control = Control(config)
        m.submodules.counters = counters = Counters()
        writer = Writer(config)
        for number, port in enumerate(writer.ports):
            m.submodules[f"write_port{number or ''}"] = port
        fetch, load = Fetch(config), Loader(config, "LOAD", config.activation_ports, config.slices)
        weights = Loader(config, "WEIGHTS", config.weight_ports)
        m.submodules.program_port = fetch.port
        for number, port in enumerate(load.ports):
            m.submodules[f"activations_port{number or ''}"] = port
        for number, port in enumerate(weights.ports):
            m.submodules[f"weights_port{number or ''}"] = port

        if config.map_beats:
            for number, (reader, port) in enumerate(zip(load.ports, writer.ports, strict=True)):
                m.submodules[f"map_memory{number or ''}"] = maps = MapMemory(config.map_beats * config.slices_per_port)
                m.d.comb += [
                    maps.write.eq(port.map_write), maps.place.eq(port.map_place), maps.write_data.eq(port.map_data),
                    maps.order.eq(reader.map_order), maps.order_valid.eq(reader.map_order_valid),
                    reader.map_valid.eq(maps.valid), reader.map_data.eq(maps.data), maps.taken.eq(reader.map_taken),
                ]

        # -- what a run's end resets ---------------------------------------------------------------------
        units = {
            "fetch": fetch, "load": load, "weights": weights,
            "sequencer": Sequencer(config), "drain": Drain(config),
            "tokens": Tokens((*NAMES, IMAGE) if config.image_beats else NAMES),
            "slots": WeightSlots(config), "array": make_array(config), "constants": ConstantBanks(config),
            "watchdog": Watchdog(WATCHED), "writer": writer,
            **({"unfolder": Unfolder(config)} if config.image_beats else {}),
            "faults": FaultEncoder(FAULTS, len(ADDRESSES), len(LAYERS)),
            **{f"{unit}_queue": InstructionQueue(opcode, config.queue_depth, config)
               for unit, opcode in (QUEUED_OPCODES | (UNFOLD_OPCODES if config.image_beats else {})).items()},
        }
        slices = [_Slice(config) for _ in range(config.slices)]
        units |= {f"{name}{_of_slice(number)}": unit
                  for number, part in enumerate(slices) for name, unit in vars(part).items()}
        for name, unit in units.items():
            setattr(m.submodules, name, ResetInserter(control.stopped)(unit))
        sequencer, drain, tokens, slots = units["sequencer"], units["drain"], units["tokens"], units["slots"]
        array, constants, watchdog = units["array"], units["constants"], units["watchdog"]

        # -- program: fetch -> queues -> units -------------------------------------------------------------
        m.d.comb += [fetch.start.eq(control.start), fetch.length.eq(control.program_length)]
        consumers = {"load": load, "weights": weights, "compute": sequencer, "store": drain}
        for unit in UNITS:
            queue, source, sink = units[f"{unit}_queue"], getattr(fetch, unit), consumers[unit].i
            m.d.comb += [
                queue.i.valid.eq(source.valid), queue.i.payload.eq(source.payload), source.ready.eq(queue.i.ready),
                sink.valid.eq(queue.o.valid), sink.payload.eq(queue.o.payload), queue.o.ready.eq(sink.ready),
            ]
        for part in (fetch, load, weights, writer):
            m.d.comb += part.regions.eq(control.regions)
        if config.slices > 1:
            m.d.comb += [load.stride.eq(control.stride), writer.stride.eq(control.stride)]
        for port in (fetch.port, *load.ports, *weights.ports, *writer.ports):
            m.d.comb += port.run.eq(control.running)

        # -- data: memory -> buffers -------------------------------------------------------------------------
        unfolder = self._connect_unfolder(m, load, tokens, units["unfolder"]) if config.image_beats else None
        for number, part in enumerate(slices):
            self._connect_loads(m, part, load, number, unfolder)
        ways = range(config.weight_ports)
        to_constants = weights.write_valid
        if config.function_table:
            to_table = Cat(weights.write_destination.word_select(k, 3) == TABLE_DESTINATION for k in ways)
            to_constants = to_constants & ~to_table
            self._connect_table(m, weights, drain, to_table)
        to_slots = Cat(weights.write_destination.word_select(k, 3) == 0 for k in ways)
        m.d.comb += [
            slots.write_valid.eq(weights.write_valid & to_slots),
            slots.write_address.eq(weights.write_address), slots.write_data.eq(weights.write_data),
            constants.write_valid.eq(to_constants & ~to_slots),
            constants.write_bank.eq(Cat(weights.write_destination[3 * k + 1] for k in ways)),
            constants.write_address.eq(weights.write_address), constants.write_data.eq(weights.write_data),
        ]

        # -- data: buffers -> array -> accumulators ----------------------------------------------------------
        m.d.comb += [
            array.activations.eq(Cat(part.activation_buffer.digits for part in slices)), array.swap.eq(sequencer.swap),
            array.load_en.eq(sequencer.load_en), array.load_index.eq(sequencer.load_index),
            array.load_codes.eq(slots.read_data), array.book.eq(sequencer.book),
            array.book_en.eq(sequencer.book_en), array.book_address.eq(sequencer.book_address),
            array.book_data.eq(sequencer.book_data),
            slots.read_address.eq(sequencer.slot_address),
        ]
        travelling, dots, stages = sequencer.control, array.dots, []
        for i in range(facts.ACTIVATION_LATENCY + facts.compute_latency(config)):
            m.submodules[f"control_stage_{i}"] = stage = Module()
            travelling = register(stage, travelling, f"control_{i}", reset_less=False)
            stages.append(travelling)
        for i in range(facts.compute_latency(config) - facts.array_latency(config)):
            m.submodules[f"dots_stage_{i}"] = stage = Module()
            dots = register(stage, dots, f"dots_{i}")
        for number, part in enumerate(slices):
            m.d.comb += [
                part.accumulators.control.eq(Mux(control.running, travelling.as_value(), 0)),
                part.accumulators.dots.eq(dots.word_select(number, len(part.accumulators.dots))),
            ]
            self._connect_reads(m, part, number, sequencer, stages, slots)

        # -- data: accumulators -> drain -> memory -------------------------------------------------------------
        for part in slices:
            m.d.comb += [
                part.accumulators.drain_bank.eq(drain.acc_bank), part.accumulators.drain_index.eq(drain.acc_index),
                part.residual_buffer.read_bank.eq(drain.residual_bank),
                part.residual_buffer.read_address.eq(drain.residual_address),
            ]
        m.d.comb += [
            drain.acc_data.eq(Cat(part.accumulators.drain_data for part in slices)),
            constants.read_bank.eq(drain.constants_bank), constants.read_group.eq(drain.constants_group),
            drain.constants_data.eq(constants.read_data),
            drain.residual_low.eq(Cat(part.residual_buffer.low for part in slices)),
            drain.residual_high.eq(Cat(part.residual_buffer.high for part in slices)),
            drain.room.eq(writer.room), drain.writer_idle.eq(writer.idle), drain.counters.eq(counters.values),
        ]
        wiring.connect(m, drain.beats, writer.beats)
        wiring.connect(m, drain.transfers, writer.i)

        # Slices do the same in the same cycle.
        self._connect_tokens(m, load, weights, sequencer, slices[0].accumulators, drain, writer, tokens, unfolder)

        # -- counters, watchdog, errors ------------------------------------------------------------------------
        events = {
            "cycles": control.running, "compute": sequencer.issue, "drain": drain.issue,
            **{name: getattr(sequencer, name) for name, _ in COUNTERS if name.startswith("stall")},
            "program_beats": fetch.beat, "activation_beats": load.beat, "weight_beats": weights.beat,
            "store_beats": writer.beat_taken, "passes": sequencer.pass_done,
        }
        loads = load.beat if unfolder is None else load.beat | ~unfolder.idle
        m.d.comb += [
            counters.clear.eq(control.start), counters.running.eq(control.running),
            counters.events.eq(Cat(events[name] for name, _ in COUNTERS)), control.counters.eq(counters.values),
            watchdog.limit.eq(control.watchdog),
            watchdog.progress.eq(Cat(
                fetch.beat, fetch.dispatched, loads, weights.beat, writer.beat_taken, writer.done_valid,
                sequencer.issue, sequencer.preloading, drain.issue, control.start)),
            control.layer.eq(sequencer.layer), control.done.eq(drain.done),
        ]
        # Ports may be many to look at: what they are doing is known a cycle later.
        still = {}
        for name, ports in zip(BUSES, ([fetch.port], load.ports, weights.ports, writer.ports)):
            still[name] = Signal(len(ports), name=f"{name}_still")
            m.d.sync += still[name].eq(Cat(port.quiescent for port in ports))
        stopped = Signal()
        m.d.sync += stopped.eq(~control.running)
        m.d.comb += control.quiescent.eq(stopped & Cat(*still.values()).all())
        self._report_faults(m, control, fetch, load, weights, sequencer, drain, still, units, slices)

        m.d.comb += self.irq.eq(control.interrupt)
        self._connect(m, self.s_axi, control.axi)
        self._connect(m, self.m_axi_program, fetch.port.axi)
        for name, port in zip(weight_masters(config), weights.ports):
            self._connect(m, getattr(self, name), port.axi)
        for name, reader, port in zip(activation_masters(config), load.ports, writer.ports):
            self._connect(m, getattr(self, name), reader.axi)
            self._connect(m, getattr(self, f"{name}_write"), port.axi)
        return m

    def _connect_unfolder(self, m, load, tokens, unfolder):
        """UNFOLD goes from the load unit to the unfolder; steps come through the first slice's port."""
        m.d.comb += [
            unfolder.start.eq(load.unfold), unfolder.fields.eq(load.i.payload), load.unfold_idle.eq(unfolder.idle),
            unfolder.step_valid.eq(load.write_valid[0] & load.write_destination[:3].all()),
            unfolder.step_row.eq(load.write_address[:16]), unfolder.step.eq(load.write_data[STEP_SHIFT:AXI_BEAT_BITS]),
            load.image_here.eq(tokens.image_full.available), tokens.image_full.take.eq(load.take_image),
            tokens.image_full.post.eq(load.post[2]),
        ]
        return unfolder

    def _connect_loads(self, m, part, load, number: int, unfolder) -> None:
        """What comes through a slice's port goes to its buffers, or by way of its image buffer."""
        port = number % self.config.activation_ports
        destination, address, data = (signal.word_select(port, width) for signal, width in (
            (load.write_destination, 3), (load.write_address, 16), (load.write_data, AXI_BEAT_BITS)))
        valid, to_residual = load.write_valid[number], destination >= 2
        own = (valid & ~to_residual, destination[0], address, data)
        if unfolder is not None:
            image, to_image = part.image_buffer, destination[1:].all()
            m.d.comb += [
                image.write_valid.eq(valid & to_image & ~destination[0]),
                image.table_valid.eq(valid & to_image & destination[0]),
                image.write_address.eq(address), image.write_data.eq(data), image.read.eq(unfolder.read),
            ]
            valid = valid & ~to_image
            # While it unfolds nothing else comes to these buffers.
            own = (own[0] | unfolder.write_valid, *(Mux(unfolder.write_valid, *pair) for pair in (
                (unfolder.write_half, own[1]), (unfolder.write_address, own[2]), (image.data, own[3]))))
            # The choice is a level before the buffers' own. A cycle later is early enough: tokens take two.
            own = tuple(register(m, value, f"own_{name}_{number}", reset_less=name != "valid")
                        for name, value in zip(("valid", "half", "address", "data"), own, strict=True))
        for buffer in part.activation_buffers:
            m.d.comb += [
                buffer.write_valid.eq(own[0]), buffer.write_half.eq(own[1]),
                buffer.write_address.eq(own[2]), buffer.write_data.eq(own[3]),
            ]
        residual = part.residual_buffer
        m.d.comb += [
            residual.write_valid.eq(valid & to_residual), residual.write_bank.eq(destination[2]),
            residual.write_plane.eq(destination[0]), residual.write_address.eq(address), residual.write_data.eq(data),
        ]

    def _connect_reads(self, m, part, number, sequencer, stages, slots) -> None:
        """From a slice's activation buffers on; `stages` are the controls on their way to the accumulators."""
        buffer, *more = part.activation_buffers
        signs = [sequencer.inside, sequencer.signed]
        if self.config.stripes:  # what lies on the map differs from stripe to stripe
            signs = [sign[number] for sign in signs]
        m.d.comb += [
            buffer.read_half.eq(sequencer.read_half), buffer.read_address.eq(sequencer.read_address),
            buffer.inside.eq(signs[0]), buffer.signed.eq(signs[1]),
        ]
        if not self.config.channel_unit:
            return
        first = len(more) * number * self.config.stripes
        for k, copy in enumerate(more):
            m.d.comb += [
                copy.read_half.eq(sequencer.read_half),
                copy.read_address.eq(sequencer.more_address.word_select(k, len(copy.read_address))),
                copy.inside.eq(sequencer.more_inside[first + k]), copy.signed.eq(sequencer.more_signed[first + k]),
            ]
        unit = part.channel_unit
        m.d.comb += [
            unit.words.eq(Cat(copy.digits for copy in part.activation_buffers)),
            unit.window.eq(stages[facts.ACTIVATION_LATENCY - 1].window),
            unit.swap.eq(sequencer.channel_swap), unit.load_en.eq(sequencer.channel_load_en),
            unit.load_index.eq(sequencer.load_index), unit.load_taps.eq(slots.read_data),
            part.accumulators.sums.eq(unit.sums), part.accumulators.ahead.eq(stages[-2]),
        ]

    @staticmethod
    def _connect_table(m, weights, drain, to_table) -> None:
        """Rows of a function table go to the drain, each weight port's part by itself."""
        for k in range(len(to_table)):
            part = drain.table_write[k]
            m.d.comb += [
                part.valid.eq(weights.write_valid[k] & to_table[k]), part.row.eq(weights.write_address.word_select(k, 16)),
                part.entries.eq(weights.write_data.word_select(k, AXI_BEAT_BITS)),
            ]

    @staticmethod
    def _connect_tokens(m, load, weights, sequencer, accumulators, drain, writer, tokens, unfolder):
        # A loader has a pair of semaphores for each kind of buffers that it fills.
        for loader, kinds in ((load, ("activations", "residual")), (weights, ("weights", "constants"))):
            for kind, name in enumerate(kinds):
                free, full = getattr(tokens, f"{name}_free"), getattr(tokens, f"{name}_full")
                m.d.comb += [loader.free[kind].eq(free.available), free.take.eq(loader.take_free[kind]),
                             full.post.eq(loader.post[kind] | unfolder.post if name == "activations" and unfolder is not None
                                          else loader.post[kind])]
        m.d.comb += [
            load.stores_count.eq(tokens.stores.count),
            tokens.stores.take.eq(load.take_stores), tokens.stores.amount.eq(load.stores_amount),
            tokens.stores.post.eq(writer.post),
            weights.stores_count.eq(0),
            sequencer.weights_here.eq(tokens.weights_full.available),
            tokens.weights_full.take.eq(sequencer.take_weights),
            tokens.weights_free.post.eq(sequencer.post_weights),
            sequencer.activations_here.eq(tokens.activations_full.available),
            tokens.activations_full.take.eq(sequencer.take_activations),
            tokens.activations_free.post.eq(sequencer.post_activations),
            sequencer.bank_free.eq(tokens.accumulators_free.available),
            tokens.accumulators_free.take.eq(sequencer.take_accumulators),
            drain.accumulators_here.eq(tokens.accumulators_full.available),
            tokens.accumulators_full.take.eq(drain.take_accumulators),
            tokens.accumulators_full.post.eq(accumulators.post),
            tokens.accumulators_free.post.eq(drain.post_accumulators),
            drain.constants_here.eq(tokens.constants_full.available),
            tokens.constants_full.take.eq(drain.take_constants),
            tokens.constants_free.post.eq(drain.post_constants),
            drain.residual_here.eq(tokens.residual_full.available),
            tokens.residual_full.take.eq(drain.take_residual),
            tokens.residual_free.post.eq(drain.post_residual),
        ]

    @staticmethod
    def _report_faults(m, control, fetch, load, weights, sequencer, drain, still, units, slices):
        faults, writer, bark = units["faults"], units["writer"], units["watchdog"].bark
        load_field = load.field_fault | Cat(part.activation_buffer.address_fault
                                            | part.residual_buffer.address_fault for part in slices).any()
        if "unfolder" in units:
            load_field |= units["unfolder"].field_fault | Cat(part.image_buffer.address_fault for part in slices).any()
        conditions = {
            ("axi_read", "fetch"): fetch.port.fault, ("axi_read", "load"): load.axi_fault,
            ("axi_read", "weights"): weights.axi_fault, ("axi_write", "store"): writer.axi_fault,
            ("axi_protocol", "fetch"): fetch.port.protocol, ("axi_protocol", "load"): load.axi_protocol,
            ("axi_protocol", "weights"): weights.axi_protocol,
            ("range", "fetch"): fetch.range_fault, ("range", "load"): load.range_fault,
            ("range", "weights"): weights.range_fault, ("range", "store"): writer.range_fault,
            ("opcode", "fetch"): fetch.opcode_fault,
            ("field", "load"): load_field,
            ("field", "weights"): weights.field_fault | units["slots"].address_fault | units["constants"].address_fault,
            ("field", "compute"): sequencer.field_fault, ("field", "store"): drain.field_fault | writer.field_fault,
            ("field", "none"): units["tokens"].overflow,
            ("overflow", "compute"): Cat(part.accumulators.overflow for part in slices).any(),
            ("end", "fetch"): fetch.end_fault, ("aborted", "none"): control.abort,
            # A run that stands still is blamed on the bus that owes an answer, if one does.
            **{("watchdog", name): bark & ~still[name].all() for name in BUSES}, ("watchdog", "compute"): bark,
        }
        buses = {"fetch": fetch.port, "load": load, "weights": weights, "store": writer}
        splitters = {"fetch": fetch, "load": load, "weights": weights, "store": writer}
        layers = {"fetch": fetch.layer, "load": load.layer, "weights": weights.layer, "compute": sequencer.layer,
                  "field": sequencer.fault_layer, "store": drain.layer}
        m.d.comb += [
            faults.conditions.eq(Cat(conditions[code, unit] for code, unit, *_ in FAULTS)),
            faults.addresses.eq(Cat(buses[name].address if kind == "burst" else splitters[name].fault_address
                                    for kind, name in ADDRESSES)),
            faults.layers.eq(Cat(layers[name] for name in LAYERS)),
            *(port.hold.eq(faults.caught) for port in (fetch.port, *load.ports, *weights.ports, *writer.ports)),
            control.caught.eq(faults.caught), control.error.eq(faults.error), control.error_unit.eq(faults.error_unit),
            control.error_address.eq(faults.error_address), control.error_layer.eq(faults.error_layer),
        ]
        assert len(conditions) == len(FAULTS)
