"""The engine: this file only connects its blocks and gives its ports their conventional flat names."""

from amaranth import Cat, ClockDomain, Elaboratable, Module, Mux, ResetInserter, Signal
from amaranth.lib.wiring import Flow

from esbflow import engine_facts as facts
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import weight_masters
from esbflow.registers import COUNTERS
from esbhw.engine.accumulators import Accumulators, control_layout
from esbhw.engine.activation_buffer import ActivationBuffer
from esbhw.engine.array import make_array
from esbhw.engine.axi import WritePort, read_signature, write_signature
from esbhw.engine.channel_unit import ChannelUnit
from esbhw.engine.constants import ConstantBanks
from esbhw.engine.control import Control, lite_signature
from esbhw.engine.counters import Counters
from esbhw.engine.drain import Drain
from esbhw.engine.faults import FaultEncoder, Watchdog
from esbhw.engine.fetch import UNITS, Fetch
from esbhw.engine.loader import Loader
from esbhw.engine.queue import InstructionQueue
from esbhw.engine.residual_buffer import ResidualBuffer
from esbhw.engine.sequencer import Sequencer
from esbhw.engine.tokens import Tokens
from esbhw.engine.transfer import BurstSplitter
from esbhw.engine.weight_slots import WeightSlots

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
        self.m_axi_activations = self._flat("m_axi_activations", read_signature())
        self.m_axi_activations_write = self._flat("m_axi_activations", write_signature())

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

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.domains.sync = domain = ClockDomain("sync")
        m.d.comb += [domain.clk.eq(self.ap_clk), domain.rst.eq(~self.ap_rst_n)]

        # -- what lives on between runs ----------------------------------------------------------------
        m.submodules.control = control = Control(config)
        m.submodules.counters = counters = Counters()
        m.submodules.write_port = write_port = WritePort(max(128, 4 * config.max_burst))
        fetch, load = Fetch(config), Loader(config, "LOAD")
        weights = Loader(config, "WEIGHTS", config.weight_ports)
        m.submodules.program_port = fetch.port
        m.submodules.activations_port = load.ports[0]
        for number, port in enumerate(weights.ports):
            m.submodules[f"weights_port{number or ''}"] = port

        # -- what a run's end resets ---------------------------------------------------------------------
        units = {
            "fetch": fetch, "load": load, "weights": weights,
            "sequencer": Sequencer(config), "drain": Drain(config), "tokens": Tokens(),
            "activation_buffer": ActivationBuffer(config), "slots": WeightSlots(config),
            "array": make_array(config), "constants": ConstantBanks(config),
            "accumulators": Accumulators(config), "residual_buffer": ResidualBuffer(config), "watchdog": Watchdog(WATCHED),
            "store_splitter": BurstSplitter(config.max_burst, tag_bits=1),
            "faults": FaultEncoder(FAULTS, len(ADDRESSES), len(LAYERS)),
            **{f"{unit}_queue": InstructionQueue(opcode, config.queue_depth)
               for unit, opcode in QUEUED_OPCODES.items()},
        }
        if config.channel_unit:
            units |= {"channel_unit": ChannelUnit(config), **{f"channel_buffer_{k}": ActivationBuffer(config)
                                                              for k in range(facts.TAP_SIDE - 1)}}
        for name, unit in units.items():
            setattr(m.submodules, name, ResetInserter(control.stopped)(unit))
        sequencer, drain, tokens = units["sequencer"], units["drain"], units["tokens"]
        activation_buffer, slots, array = units["activation_buffer"], units["slots"], units["array"]
        constants, residual_buffer = units["constants"], units["residual_buffer"]
        accumulators, splitter, watchdog = units["accumulators"], units["store_splitter"], units["watchdog"]

        # -- program: fetch -> queues -> units -------------------------------------------------------------
        m.d.comb += [fetch.start.eq(control.start), fetch.length.eq(control.program_length)]
        consumers = {"load": load, "weights": weights, "compute": sequencer, "store": drain}
        for unit in UNITS:
            queue, source, sink = units[f"{unit}_queue"], getattr(fetch, unit), consumers[unit].i
            m.d.comb += [
                queue.i.valid.eq(source.valid), queue.i.payload.eq(source.payload), source.ready.eq(queue.i.ready),
                sink.valid.eq(queue.o.valid), sink.payload.eq(queue.o.payload), queue.o.ready.eq(sink.ready),
            ]
        for part in (fetch, load, weights, splitter):
            m.d.comb += part.regions.eq(control.regions)
        for port in (fetch.port, *load.ports, *weights.ports, write_port):
            m.d.comb += port.run.eq(control.running)

        # -- data: memory -> buffers -------------------------------------------------------------------------
        to_residual = load.write_destination >= 2
        ways = range(config.weight_ports)
        to_slots = Cat(weights.write_destination.word_select(k, 3) == 0 for k in ways)
        m.d.comb += [
            activation_buffer.write_valid.eq(load.write_valid & ~to_residual),
            activation_buffer.write_half.eq(load.write_destination[0]),
            activation_buffer.write_address.eq(load.write_address),
            activation_buffer.write_data.eq(load.write_data),
            residual_buffer.write_valid.eq(load.write_valid & to_residual),
            residual_buffer.write_bank.eq(load.write_destination[2]),
            residual_buffer.write_plane.eq(load.write_destination[0]),
            residual_buffer.write_address.eq(load.write_address),
            residual_buffer.write_data.eq(load.write_data),
            slots.write_valid.eq(weights.write_valid & to_slots),
            slots.write_address.eq(weights.write_address), slots.write_data.eq(weights.write_data),
            constants.write_valid.eq(weights.write_valid & ~to_slots),
            constants.write_bank.eq(Cat(weights.write_destination[3 * k + 1] for k in ways)),
            constants.write_address.eq(weights.write_address), constants.write_data.eq(weights.write_data),
        ]

        # -- data: buffers -> array -> accumulators ----------------------------------------------------------
        m.d.comb += [
            activation_buffer.read_half.eq(sequencer.read_half),
            activation_buffer.read_address.eq(sequencer.read_address),
            activation_buffer.inside.eq(sequencer.inside), activation_buffer.signed.eq(sequencer.signed),
            array.activations.eq(activation_buffer.digits), array.swap.eq(sequencer.swap),
            array.load_en.eq(sequencer.load_en), array.load_index.eq(sequencer.load_index),
            array.load_codes.eq(slots.read_data), array.book.eq(sequencer.book),
            array.book_en.eq(sequencer.book_en), array.book_address.eq(sequencer.book_address),
            array.book_data.eq(sequencer.book_data),
            slots.read_address.eq(sequencer.slot_address),
        ]
        travelling, dots, stages = sequencer.control, array.dots, []
        for i in range(facts.ACTIVATION_LATENCY + facts.compute_latency(config)):
            register = Signal(control_layout(config), name=f"control_{i}")
            m.submodules[f"control_stage_{i}"] = stage = Module()
            stage.d.sync += register.eq(travelling)
            travelling = register
            stages.append(register)
        for i in range(facts.compute_latency(config) - facts.array_latency(config)):
            register = Signal(len(dots), name=f"dots_{i}", reset_less=True)
            m.submodules[f"dots_stage_{i}"] = stage = Module()
            stage.d.sync += register.eq(dots)
            dots = register
        m.d.comb += [
            accumulators.control.eq(Mux(control.running, travelling.as_value(), 0)), accumulators.dots.eq(dots),
        ]
        if config.channel_unit:
            self._connect_channel_unit(m, units, stages, load, to_residual)

        # -- data: accumulators -> drain -> memory -------------------------------------------------------------
        m.d.comb += [
            accumulators.drain_bank.eq(drain.acc_bank), accumulators.drain_index.eq(drain.acc_index),
            drain.acc_data.eq(accumulators.drain_data),
            constants.read_bank.eq(drain.constants_bank), constants.read_group.eq(drain.constants_group),
            drain.constants_data.eq(constants.read_data),
            residual_buffer.read_bank.eq(drain.residual_bank),
            residual_buffer.read_address.eq(drain.residual_address),
            drain.residual_low.eq(residual_buffer.low), drain.residual_high.eq(residual_buffer.high),
            write_port.beats.valid.eq(drain.beats.valid), write_port.beats.payload.eq(drain.beats.payload),
            drain.beats.ready.eq(write_port.beats.ready), drain.room.eq(write_port.room),
            splitter.i.valid.eq(drain.transfers.valid), splitter.i.payload.eq(drain.transfers.payload),
            drain.transfers.ready.eq(splitter.i.ready),
            write_port.bursts.valid.eq(splitter.o.valid), splitter.o.ready.eq(write_port.bursts.ready),
            write_port.bursts.payload.address.eq(splitter.o.payload.address),
            write_port.bursts.payload.length.eq(splitter.o.payload.length),
            write_port.bursts.payload.tag.eq(splitter.o.payload.tag & splitter.o.payload.last),
            drain.writer_idle.eq(splitter.i.ready & write_port.quiescent),
            drain.counters.eq(counters.values),
        ]

        self._connect_tokens(m, load, weights, sequencer, accumulators, drain, write_port, tokens)

        # -- counters, watchdog, errors ------------------------------------------------------------------------
        events = {
            "cycles": control.running, "compute": sequencer.issue, "drain": drain.issue,
            **{name: getattr(sequencer, name) for name, _ in COUNTERS if name.startswith("stall")},
            "program_beats": fetch.beat, "activation_beats": load.beat, "weight_beats": weights.beat,
            "store_beats": write_port.beat_taken, "passes": sequencer.pass_done,
        }
        m.d.comb += [
            counters.clear.eq(control.start), counters.running.eq(control.running),
            counters.events.eq(Cat(events[name] for name, _ in COUNTERS)), control.counters.eq(counters.values),
            watchdog.limit.eq(control.watchdog),
            watchdog.progress.eq(Cat(
                fetch.beat, fetch.dispatched, load.beat, weights.beat, write_port.beat_taken, write_port.done_valid,
                sequencer.issue, sequencer.preloading, drain.issue, control.start)),
            control.layer.eq(sequencer.layer), control.done.eq(drain.done),
            control.quiescent.eq(
                fetch.port.quiescent & load.quiescent & weights.quiescent & write_port.quiescent),
        ]
        self._report_faults(m, control, fetch, load, weights, sequencer, drain, units, write_port)

        m.d.comb += self.irq.eq(control.interrupt)
        self._connect(m, self.s_axi, control.axi)
        self._connect(m, self.m_axi_program, fetch.port.axi)
        for name, port in zip(weight_masters(config), weights.ports):
            self._connect(m, getattr(self, name), port.axi)
        self._connect(m, self.m_axi_activations, load.ports[0].axi)
        self._connect(m, self.m_axi_activations_write, write_port.axi)
        return m

    @staticmethod
    def _connect_channel_unit(m, units, stages, load, to_residual):
        """Its buffers hold what the activation buffer holds; `stages` are the controls on their way to the accumulators."""
        unit, sequencer, accumulators = units["channel_unit"], units["sequencer"], units["accumulators"]
        words = [units["activation_buffer"].digits]
        for k in range(facts.TAP_SIDE - 1):
            buffer = units[f"channel_buffer_{k}"]
            m.d.comb += [
                buffer.write_valid.eq(load.write_valid & ~to_residual), buffer.write_half.eq(load.write_destination[0]),
                buffer.write_address.eq(load.write_address), buffer.write_data.eq(load.write_data),
                buffer.read_half.eq(sequencer.read_half),
                buffer.read_address.eq(sequencer.more_address.word_select(k, len(buffer.read_address))),
                buffer.inside.eq(sequencer.more_inside[k]), buffer.signed.eq(sequencer.more_signed[k]),
            ]
            words.append(buffer.digits)
        m.d.comb += [
            unit.words.eq(Cat(*words)), unit.window.eq(stages[facts.ACTIVATION_LATENCY - 1].window),
            unit.swap.eq(sequencer.channel_swap), unit.load_en.eq(sequencer.channel_load_en),
            unit.load_index.eq(sequencer.load_index), unit.load_taps.eq(units["slots"].read_data),
            accumulators.sums.eq(unit.sums), accumulators.ahead.eq(stages[-2]),
        ]

    @staticmethod
    def _connect_tokens(m, load, weights, sequencer, accumulators, drain, write_port, tokens):
        # A LOAD's or WEIGHTS' destination says which pair of semaphores it uses.
        to_residual, posted_residual = load.destination >= 2, load.post_destination >= 2
        to_slots, posted_slots = weights.destination == 0, weights.post_destination == 0
        m.d.comb += [
            load.free.eq(Mux(to_residual, tokens.residual_free.available, tokens.activations_free.available)),
            tokens.residual_free.take.eq(load.take_free & to_residual),
            tokens.activations_free.take.eq(load.take_free & ~to_residual),
            load.stores_count.eq(tokens.stores.count),
            tokens.stores.take.eq(load.take_stores), tokens.stores.amount.eq(load.stores_amount),
            tokens.stores.post.eq(write_port.done_valid & write_port.done_tag),
            tokens.residual_full.post.eq(load.post & posted_residual),
            tokens.activations_full.post.eq(load.post & ~posted_residual),
            weights.free.eq(Mux(to_slots, tokens.weights_free.available, tokens.constants_free.available)),
            weights.stores_count.eq(0),
            tokens.weights_free.take.eq(weights.take_free & to_slots),
            tokens.constants_free.take.eq(weights.take_free & ~to_slots),
            tokens.weights_full.post.eq(weights.post & posted_slots),
            tokens.constants_full.post.eq(weights.post & ~posted_slots),
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
    def _report_faults(m, control, fetch, load, weights, sequencer, drain, units, write_port):
        faults, splitter, bark = units["faults"], units["store_splitter"], units["watchdog"].bark
        conditions = {
            ("axi_read", "fetch"): fetch.port.fault, ("axi_read", "load"): load.axi_fault,
            ("axi_read", "weights"): weights.axi_fault, ("axi_write", "store"): write_port.fault,
            ("axi_protocol", "fetch"): fetch.port.protocol, ("axi_protocol", "load"): load.axi_protocol,
            ("axi_protocol", "weights"): weights.axi_protocol,
            ("range", "fetch"): fetch.range_fault, ("range", "load"): load.range_fault,
            ("range", "weights"): weights.range_fault, ("range", "store"): splitter.range_fault,
            ("opcode", "fetch"): fetch.opcode_fault,
            ("field", "load"): load.field_fault | units["activation_buffer"].address_fault
            | units["residual_buffer"].address_fault,
            ("field", "weights"): weights.field_fault | units["slots"].address_fault | units["constants"].address_fault,
            ("field", "compute"): sequencer.field_fault, ("field", "store"): drain.field_fault | splitter.field_fault,
            ("field", "none"): units["tokens"].overflow, ("overflow", "compute"): units["accumulators"].overflow,
            ("end", "fetch"): fetch.end_fault, ("aborted", "none"): control.abort,
            # A run that stands still is blamed on the bus that owes an answer, if one does.
            ("watchdog", "store"): bark & ~write_port.quiescent, ("watchdog", "load"): bark & ~load.quiescent,
            ("watchdog", "weights"): bark & ~weights.quiescent, ("watchdog", "fetch"): bark & ~fetch.port.quiescent,
            ("watchdog", "compute"): bark,
        }
        buses = {"fetch": fetch.port, "load": load, "weights": weights, "store": write_port}
        splitters = {"fetch": fetch, "load": load, "weights": weights, "store": splitter}
        layers = {"fetch": fetch.layer, "load": load.layer, "weights": weights.layer, "compute": sequencer.layer,
                  "field": sequencer.fault_layer, "store": drain.layer}
        m.d.comb += [
            faults.conditions.eq(Cat(conditions[code, unit] for code, unit, *_ in FAULTS)),
            faults.addresses.eq(Cat(buses[name].address if kind == "burst" else splitters[name].fault_address
                                    for kind, name in ADDRESSES)),
            faults.layers.eq(Cat(layers[name] for name in LAYERS)),
            *(port.hold.eq(faults.caught) for port in (fetch.port, *load.ports, *weights.ports, write_port)),
            control.caught.eq(faults.caught), control.error.eq(faults.error), control.error_unit.eq(faults.error_unit),
            control.error_address.eq(faults.error_address), control.error_layer.eq(faults.error_layer),
        ]
        assert len(conditions) == len(FAULTS)
