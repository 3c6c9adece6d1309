"""Writes what the drain gives to memory: for each slice what that slice has, to a part of memory of its own."""

from amaranth import Cat, Const, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import place_bits, write_beats
from esbflow.registers import MAPS_REGION
from esbhw.engine.axi import WritePort, name_address
from esbhw.engine.spread import APART_BITS, STRIDE_BITS, Spread
from esbhw.engine.tokens import joined
from esbhw.engine.transfer import REGION_LAYOUT, BurstSplitter, transfer_layout

AHEAD_BITS = 6
"""A port may be ahead of another by as many transfers as it has bursts whose answers are awaited."""
SIGN_PORTS = 4
"""Ports that a sign of the writer's `idle` looks at: as many as a LUT can, so that the drain has one left."""


def idle_signs(config: EngineConfig) -> int:
    """How many signals say that write ports are idle: one for every SIGN_PORTS ports."""
    return -(-config.activation_ports // SIGN_PORTS)


def store_tag_bits(config: EngineConfig) -> int:
    """Of a store: whether it asks for a token and, with stripes, how many pages of its own its slices lie apart."""
    return 1 + APART_BITS * config.stripes


class Writer(wiring.Component):
    """Carries out the drain's transfers, through as many WritePorts as the engine has for activations.

    Each burst is written for each slice: see Spread. A port's beats are those of its slices, which all come at once.

    Members
    -------
    regions : In(REGION_LAYOUT);  stride : In(STRIDE_BITS), with several slices: see Spread
    i : In(stream of transfer_layout(store_tag_bits(config))), tag 1 asks for a stores token; with stripes, pages apart above
        it
    beats : In(stream of 128 bits for each slice);  room : Out(1), as WritePort
    idle : Out(idle_signs(config)), all of them: nothing is left to write
    done_valid : Out(1), bursts were answered;  post : Out(1), a transfer with the tag is written in all slices
    axi_fault, beat_taken : Out(1);  address : Out(40), of any of the ports, as WritePort
    range_fault, field_fault : Out(1);  fault_address : Out(40), as BurstSplitter
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        self.ports = [WritePort(write_beats(config), config.slices_per_port, place_bits(config))
                      for _ in range(config.activation_ports)]
        super().__init__({
            "regions": In(REGION_LAYOUT), "i": In(stream.Signature(transfer_layout(store_tag_bits(config)))),
            "beats": In(stream.Signature(AXI_BEAT_BITS * config.slices)), "room": Out(1, init=1),
            "idle": Out(idle_signs(config)),
            "done_valid": Out(1), "post": Out(1),
            "axi_fault": Out(1), "address": Out(AXI_ADDRESS_BITS), "beat_taken": Out(1),
            "range_fault": Out(1), "field_fault": Out(1), "fault_address": Out(AXI_ADDRESS_BITS),
            **({"stride": In(STRIDE_BITS)} if config.slices > 1 else {}),
        })

    def elaborate(self, platform):
        m = Module()
        config, ports = self._config, self.ports
        tag_bits, maps = store_tag_bits(config), config.map_beats
        m.submodules.splitter = splitter = BurstSplitter(config.max_burst, tag_bits + (maps > 0), map_beats=maps)
        if maps:  # behind the post, whether the transfer goes to the map memory
            new, tag = self.i.payload, self.i.payload.tag
            on_chip = new.region == MAPS_REGION
            m.d.comb += [splitter.i.payload.eq(Cat(new.as_value()[:-tag_bits], tag[0], on_chip, tag[1:])),
                         splitter.i.valid.eq(self.i.valid), self.i.ready.eq(splitter.i.ready)]
        else:
            wiring.connect(m, wiring.flipped(self.i), splitter.i)
        piece = splitter.o.payload
        if config.slices > 1:
            m.submodules.spread = spread = Spread(config.slices, len(ports), 1 + (maps > 0), config.stripes,
                                                  on_chip=1 if maps else None)
            wiring.connect(m, splitter.o, spread.i)
            m.d.comb += [spread.stride.eq(self.stride), spread.ready.eq(Cat(port.bursts.ready for port in ports))]
            valid, length, idle = list(spread.valid), spread.length, splitter.i.ready & spread.idle
            group, on_chip = spread.group if config.slices_per_port > 1 else Const(0, 0), spread.tag[1:2]
            tag = Cat(spread.tag[0] & spread.last, spread.later, spread.group)
            addresses = [spread.address.word_select(k, AXI_ADDRESS_BITS) for k in range(len(ports))]
        else:
            m.d.comb += splitter.o.ready.eq(ports[0].bursts.ready)
            valid, length, idle = [splitter.o.valid], piece.length, splitter.i.ready
            group, on_chip = Const(0, 0), piece.tag[1:2]
            tag, addresses = piece.tag[0] & piece.last, [piece.address]
        for k, port in enumerate(ports):
            own = [self.beats.payload.word_select(number, AXI_BEAT_BITS) for number in range(k, config.slices, len(ports))]
            m.d.comb += [
                # All ports have room where one has: the drain heeds `room`.
                port.beats.valid.eq(self.beats.valid), port.beats.payload.eq(Cat(*own)),
                port.bursts.valid.eq(valid[k]), port.bursts.payload.address.eq(addresses[k]),
                port.bursts.payload.length.eq(length), port.bursts.payload.tag.eq(tag),
            ]
            if maps:
                place = Cat(addresses[k][4:4 + exact_log2(maps)], group)
                m.d.comb += [port.bursts.payload.on_chip.eq(on_chip), port.bursts.payload.place.eq(place)]
        m.d.comb += [
            splitter.regions.eq(self.regions), self.range_fault.eq(splitter.range_fault),
            self.field_fault.eq(splitter.field_fault), self.fault_address.eq(splitter.fault_address),
            self.beats.ready.eq(ports[0].beats.ready),
            self.idle.eq(Cat(Cat(*(port.idle for port in ports[k:k + SIGN_PORTS]), *([] if k else [idle])).all()
                             for k in range(0, len(ports), SIGN_PORTS))),
            self.done_valid.eq(Cat(port.done_valid for port in ports).any()),
            self.axi_fault.eq(Cat(port.fault for port in ports).any()),
            self.beat_taken.eq(Cat(port.beat_taken for port in ports).any()),
        ]
        joined(m, [port.done_valid & port.done_tag for port in ports], self.post, AHEAD_BITS + 1)
        # Of several a cycle later, as there is much to look at: the FIFOs have room for what comes meanwhile.
        if len(ports) == 1:
            m.d.comb += self.room.eq(ports[0].room)
        else:
            m.d.sync += self.room.eq(Cat(port.room for port in ports).all())
        name_address(m, ports, [~port.idle for port in ports], [port.fault for port in ports], self.address)
        return m
