"""The engine: this file only connects its blocks and gives its ports their conventional flat names."""

from typing import NamedTuple

from amaranth import Cat, ClockDomain, Elaboratable, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Flow

from esbflow import engine_facts as facts
from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import STEP_SHIFT, TABLE_DESTINATION, activation_masters, weight_masters
from esbflow.registers import COUNTERS
from esbhw.engine.axi import read_signature, write_signature
from esbhw.engine.control import lite_signature
from esbhw.engine.fault_table import BUSES, report_faults
from esbhw.engine.fetch import UNITS
from esbhw.engine.units import Slice, Units
from esbhw.fabric.idioms import register


class _Write(NamedTuple):
    """What is written into activation buffers in this cycle."""

    valid: Value
    half: Value
    address: Value
    data: Value


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
    def _connect(m, signals, interface) -> None:
        """A block's interface to the flat ports of the same signature."""
        for name, (signal, is_output) in signals.items():
            inner = getattr(interface, name)
            m.d.comb += signal.eq(inner) if is_output else inner.eq(signal)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = domain = ClockDomain("sync")
        m.d.comb += [domain.clk.eq(self.ap_clk), domain.rst.eq(~self.ap_rst_n)]
        units = Units(self.config)
        units.add_to(m)
        # In the order in which a program and its data go through the engine.
        self._connect_maps(m, units)
        self._connect_program(m, units)
        self._connect_memory(m, units)
        if units.unfolder:
            self._connect_unfolder(m, units)
        for number, part in enumerate(units.slices):
            self._connect_loads(m, units, part, number)
        self._connect_weights(m, units)
        self._connect_array(m, units)
        self._connect_accumulators(m, units)
        self._connect_drain(m, units)
        self._connect_tokens(m, units)
        self._connect_events(m, units)
        report_faults(m, units, self._connect_quiescent(m, units))
        self._connect_ports(m, units)
        return m

    @staticmethod
    def _connect_maps(m, units: Units) -> None:
        """A port's map memory: what its WritePort writes on chip its ReadPort reads there."""
        if not units.maps:
            return
        for maps, reader, port in zip(units.maps, units.load.ports, units.writer.ports, strict=True):
            m.d.comb += [
                maps.write.eq(port.map_write), maps.place.eq(port.map_place), maps.write_data.eq(port.map_data),
                maps.order.eq(reader.map_order), maps.order_valid.eq(reader.map_order_valid),
                reader.map_valid.eq(maps.valid), reader.map_data.eq(maps.data), maps.taken.eq(reader.map_taken),
            ]

    @staticmethod
    def _connect_program(m, units: Units) -> None:
        """Instructions from the fetch unit through a queue to each of the others."""
        control, fetch = units.control, units.fetch
        m.d.comb += [fetch.start.eq(control.start), fetch.length.eq(control.program_length)]
        consumers = {"load": units.load, "weights": units.weights, "compute": units.sequencer, "store": units.drain}
        for unit in UNITS:
            queue, source, sink = units.queues[unit], getattr(fetch, unit), consumers[unit].i
            m.d.comb += [
                queue.i.valid.eq(source.valid), queue.i.payload.eq(source.payload), source.ready.eq(queue.i.ready),
                sink.valid.eq(queue.o.valid), sink.payload.eq(queue.o.payload), queue.o.ready.eq(sink.ready),
            ]

    def _connect_memory(self, m, units: Units) -> None:
        """Where memory's regions lie, and whether ports may begin bursts."""
        control, load, writer = units.control, units.load, units.writer
        for part in (units.fetch, load, units.weights, writer):
            m.d.comb += part.regions.eq(control.regions)
        if self.config.slices > 1:
            m.d.comb += [load.stride.eq(control.stride), writer.stride.eq(control.stride)]
        for port in units.ports():
            m.d.comb += port.run.eq(control.running)

    @staticmethod
    def _connect_unfolder(m, units: Units) -> None:
        """UNFOLD goes from the load unit to the unfolder; steps come through the first slice's port."""
        load, tokens, unfolder = units.load, units.tokens, units.unfolder
        m.d.comb += [
            unfolder.start.eq(load.unfold), unfolder.fields.eq(load.i.payload), load.unfold_idle.eq(unfolder.idle),
            unfolder.step_valid.eq(load.write_valid[0] & load.write_destination[:3].all()),
            unfolder.step_row.eq(load.write_address[:16]), unfolder.step.eq(load.write_data[STEP_SHIFT:AXI_BEAT_BITS]),
            load.image_here.eq(tokens.image_full.available), tokens.image_full.take.eq(load.take_image),
            tokens.image_full.post.eq(load.post[2]),
        ]

    def _connect_loads(self, m, units: Units, part: Slice, number: int) -> None:
        """What comes through a slice's port goes to its buffers, or by way of its image buffer."""
        load, unfolder = units.load, units.unfolder
        port = number % self.config.activation_ports
        destination, address, data = (signal.word_select(port, width) for signal, width in (
            (load.write_destination, 3), (load.write_address, 16), (load.write_data, AXI_BEAT_BITS)))
        valid, to_residual = load.write_valid[number], destination >= 2
        write = _Write(valid & ~to_residual, destination[0], address, data)
        if unfolder:
            image, to_image = part.image_buffer, destination[1:].all()
            m.d.comb += [
                image.write_valid.eq(valid & to_image & ~destination[0]),
                image.table_valid.eq(valid & to_image & destination[0]),
                image.write_address.eq(address), image.write_data.eq(data), image.read.eq(unfolder.read),
            ]
            valid = valid & ~to_image
            # While it unfolds nothing else comes to these buffers.
            unfolded = unfolder.write_valid
            write = _Write(write.valid | unfolded, Mux(unfolded, unfolder.write_half, write.half),
                           Mux(unfolded, unfolder.write_address, write.address), Mux(unfolded, image.data, write.data))
            # The choice is a level before the buffers' own. A cycle later is early enough: tokens take two.
            write = _Write(*(register(m, value, f"own_{name}_{number}", reset_less=name != "valid")
                             for name, value in write._asdict().items()))
        for buffer in part.activation_buffers:
            m.d.comb += [
                buffer.write_valid.eq(write.valid), buffer.write_half.eq(write.half),
                buffer.write_address.eq(write.address), buffer.write_data.eq(write.data),
            ]
        residual = part.residual_buffer
        m.d.comb += [
            residual.write_valid.eq(valid & to_residual), residual.write_bank.eq(destination[2]),
            residual.write_plane.eq(destination[0]), residual.write_address.eq(address), residual.write_data.eq(data),
        ]

    def _connect_weights(self, m, units: Units) -> None:
        """What the weight ports bring: tiles to the slots, constants to their banks, function tables to the drain."""
        weights, slots, constants = units.weights, units.slots, units.constants
        ways = range(self.config.weight_ports)
        to_constants = weights.write_valid
        if self.config.function_table:
            to_table = Cat(weights.write_destination.word_select(k, 3) == TABLE_DESTINATION for k in ways)
            to_constants = to_constants & ~to_table
            self._connect_table(m, units, to_table)
        to_slots = Cat(weights.write_destination.word_select(k, 3) == 0 for k in ways)
        m.d.comb += [
            slots.write_valid.eq(weights.write_valid & to_slots),
            slots.write_address.eq(weights.write_address), slots.write_data.eq(weights.write_data),
            constants.write_valid.eq(to_constants & ~to_slots),
            constants.write_bank.eq(Cat(weights.write_destination[3 * k + 1] for k in ways)),
            constants.write_address.eq(weights.write_address), constants.write_data.eq(weights.write_data),
        ]

    @staticmethod
    def _connect_table(m, units: Units, to_table) -> None:
        """Rows of a function table go to the drain, each weight port's part by itself."""
        weights, drain = units.weights, units.drain
        for k in range(len(to_table)):
            part = drain.table_write[k]
            m.d.comb += [
                part.valid.eq(weights.write_valid[k] & to_table[k]), part.row.eq(weights.write_address.word_select(k, 16)),
                part.entries.eq(weights.write_data.word_select(k, AXI_BEAT_BITS)),
            ]

    @staticmethod
    def _connect_array(m, units: Units) -> None:
        """Digits of all slices, and the weights of the next pass, to the array."""
        array, sequencer = units.array, units.sequencer
        m.d.comb += [
            array.activations.eq(Cat(part.activation_buffer.digits for part in units.slices)), array.swap.eq(sequencer.swap),
            array.load_en.eq(sequencer.load_en), array.load_index.eq(sequencer.load_index),
            array.load_codes.eq(units.slots.read_data), array.book.eq(sequencer.book),
            array.book_en.eq(sequencer.book_en), array.book_address.eq(sequencer.book_address),
            array.book_data.eq(sequencer.book_data),
            units.slots.read_address.eq(sequencer.slot_address),
        ]

    def _connect_accumulators(self, m, units: Units) -> None:
        """Dot products to the accumulators; a pixel's control travels beside them, a module a stage."""
        config, travelling, dots, stages = self.config, units.sequencer.control, units.array.dots, []
        for i in range(facts.ACTIVATION_LATENCY + facts.compute_latency(config)):
            m.submodules[f"control_stage_{i}"] = stage = Module()
            travelling = register(stage, travelling, f"control_{i}", reset_less=False)
            stages.append(travelling)
        for i in range(facts.compute_latency(config) - facts.array_latency(config)):
            m.submodules[f"dots_stage_{i}"] = stage = Module()
            dots = register(stage, dots, f"dots_{i}")
        for number, part in enumerate(units.slices):
            m.d.comb += [
                part.accumulators.control.eq(Mux(units.control.running, travelling.as_value(), 0)),
                part.accumulators.dots.eq(dots.word_select(number, len(part.accumulators.dots))),
            ]
            self._connect_reads(m, units, part, number, stages)

    def _connect_reads(self, m, units: Units, part: Slice, number: int, stages: list) -> None:
        """From a slice's activation buffers on; `stages` are the controls on their way to the accumulators."""
        sequencer, slots = units.sequencer, units.slots
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
    def _connect_drain(m, units: Units) -> None:
        """Accumulators, constants and residuals to the drain, and its beats and transfers to the writer."""
        drain, constants, writer, slices = units.drain, units.constants, units.writer, units.slices
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
            drain.room.eq(writer.room), drain.writer_idle.eq(writer.idle), drain.counters.eq(units.counters.values),
        ]
        wiring.connect(m, drain.beats, writer.beats)
        wiring.connect(m, drain.transfers, writer.i)

    @staticmethod
    def _connect_tokens(m, units: Units) -> None:
        """Who posts a token, and who takes it."""
        load, weights, sequencer, drain = units.load, units.weights, units.sequencer, units.drain
        tokens, unfolder = units.tokens, units.unfolder
        # A loader has a pair of semaphores for each kind of buffers that it fills.
        for loader, kinds in ((load, ("activations", "residual")), (weights, ("weights", "constants"))):
            for kind, name in enumerate(kinds):
                free, full = getattr(tokens, f"{name}_free"), getattr(tokens, f"{name}_full")
                m.d.comb += [loader.free[kind].eq(free.available), free.take.eq(loader.take_free[kind]),
                             full.post.eq(loader.post[kind] | unfolder.post if name == "activations" and unfolder
                                          else loader.post[kind])]
        m.d.comb += [
            load.stores_count.eq(tokens.stores.count),
            tokens.stores.take.eq(load.take_stores), tokens.stores.amount.eq(load.stores_amount),
            tokens.stores.post.eq(units.writer.post),
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
            # Slices do the same in the same cycle.
            tokens.accumulators_full.post.eq(units.slices[0].accumulators.post),
            tokens.accumulators_free.post.eq(drain.post_accumulators),
            drain.constants_here.eq(tokens.constants_full.available),
            tokens.constants_full.take.eq(drain.take_constants),
            tokens.constants_free.post.eq(drain.post_constants),
            drain.residual_here.eq(tokens.residual_full.available),
            tokens.residual_full.take.eq(drain.take_residual),
            tokens.residual_free.post.eq(drain.post_residual),
        ]

    @staticmethod
    def _connect_events(m, units: Units) -> None:
        """What is counted, and what the watchdog takes for progress."""
        control, counters, watchdog, sequencer = units.control, units.counters, units.watchdog, units.sequencer
        fetch, load, weights, drain, writer = units.fetch, units.load, units.weights, units.drain, units.writer
        events = {
            "cycles": control.running, "compute": sequencer.issue, "drain": drain.issue,
            **{name: getattr(sequencer, name) for name, _ in COUNTERS if name.startswith("stall")},
            "program_beats": fetch.beat, "activation_beats": load.beat, "weight_beats": weights.beat,
            "store_beats": writer.beat_taken, "passes": sequencer.pass_done,
        }
        loads = load.beat | ~units.unfolder.idle if units.unfolder else load.beat
        m.d.comb += [
            counters.clear.eq(control.start), counters.running.eq(control.running),
            counters.events.eq(Cat(events[name] for name, _ in COUNTERS)), control.counters.eq(counters.values),
            watchdog.limit.eq(control.watchdog),
            watchdog.progress.eq(Cat(
                fetch.beat, fetch.dispatched, loads, weights.beat, writer.beat_taken, writer.done_valid,
                sequencer.issue, sequencer.preloading, drain.issue, control.start)),
            control.layer.eq(sequencer.layer), control.done.eq(drain.done),
        ]

    @staticmethod
    def _connect_quiescent(m, units: Units) -> dict:
        """{bus: for each of its ports, whether it was quiescent a cycle ago}: there may be many ports to look at."""
        still = {}
        of_buses = ([units.fetch.port], units.load.ports, units.weights.ports, units.writer.ports)
        for name, ports in zip(BUSES, of_buses, strict=True):
            still[name] = Signal(len(ports), name=f"{name}_still")
            m.d.sync += still[name].eq(Cat(port.quiescent for port in ports))
        stopped = Signal()
        m.d.sync += stopped.eq(~units.control.running)
        m.d.comb += units.control.quiescent.eq(stopped & Cat(*still.values()).all())
        return still

    def _connect_ports(self, m, units: Units) -> None:
        """The engine's own ports."""
        m.d.comb += self.irq.eq(units.control.interrupt)
        self._connect(m, self.s_axi, units.control.axi)
        self._connect(m, self.m_axi_program, units.fetch.port.axi)
        for name, port in zip(weight_masters(self.config), units.weights.ports, strict=True):
            self._connect(m, getattr(self, name), port.axi)
        for name, reader, port in zip(activation_masters(self.config), units.load.ports, units.writer.ports, strict=True):
            self._connect(m, getattr(self, name), reader.axi)
            self._connect(m, getattr(self, f"{name}_write"), port.axi)
