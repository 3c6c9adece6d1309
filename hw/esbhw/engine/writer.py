"""Writes what the drain gives to memory: for each slice what that slice has, to a part of memory of its own."""

from dataclasses import dataclass

from amaranth import Cat, Const, Module, Value
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


@dataclass(frozen=True, eq=False)
class _Bursts:
    """What is on offer to the ports: `valid` and `addresses` of each; `group` is of a port's slices.

    idle : nothing is left to offer
    """

    valid: list
    addresses: list
    length: Value
    tag: Value
    on_chip: Value
    group: Value
    idle: Value


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
        maps = config.map_beats > 0
        m.submodules.splitter = splitter = BurstSplitter(config.max_burst, store_tag_bits(config) + maps,
                                                         map_beats=config.map_beats)
        self._take(m, splitter)
        bursts = self._spread(m, splitter) if config.slices > 1 else self._hand_on(m, splitter)
        for k, port in enumerate(ports):
            self._connect(m, k, port, bursts)
        m.d.comb += [
            splitter.regions.eq(self.regions), self.range_fault.eq(splitter.range_fault),
            self.field_fault.eq(splitter.field_fault), self.fault_address.eq(splitter.fault_address),
            self.beats.ready.eq(ports[0].beats.ready),
            self.idle.eq(Cat(Cat(*(port.idle for port in ports[k:k + SIGN_PORTS]), *([] if k else [bursts.idle])).all()
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

    def _take(self, m, splitter) -> None:
        """A transfer to the splitter; with map memories its tag says, behind the post, whether it goes to those."""
        if not self._config.map_beats:
            wiring.connect(m, wiring.flipped(self.i), splitter.i)
            return
        new, tag = self.i.payload, self.i.payload.tag
        on_chip = new.region == MAPS_REGION
        tag_bits = store_tag_bits(self._config)
        m.d.comb += [splitter.i.payload.eq(Cat(new.as_value()[:-tag_bits], tag[0], on_chip, tag[1:])),
                     splitter.i.valid.eq(self.i.valid), self.i.ready.eq(splitter.i.ready)]

    def _spread(self, m, splitter) -> _Bursts:
        """Each burst for each slice."""
        config, ports, maps = self._config, self.ports, self._config.map_beats > 0
        m.submodules.spread = spread = Spread(config.slices, len(ports), 1 + maps, config.stripes,
                                              on_chip=1 if maps else None)
        wiring.connect(m, splitter.o, spread.i)
        m.d.comb += [spread.stride.eq(self.stride), spread.ready.eq(Cat(port.bursts.ready for port in ports))]
        return _Bursts(
            list(spread.valid), [spread.address.word_select(k, AXI_ADDRESS_BITS) for k in range(len(ports))], spread.length,
            Cat(spread.tag[0] & spread.last, spread.later, spread.group), spread.tag[1:2],
            spread.group if config.slices_per_port > 1 else Const(0, 0), splitter.i.ready & spread.idle)

    def _hand_on(self, m, splitter) -> _Bursts:
        """Each burst for the only slice."""
        piece = splitter.o.payload
        m.d.comb += splitter.o.ready.eq(self.ports[0].bursts.ready)
        return _Bursts([splitter.o.valid], [piece.address], piece.length, piece.tag[0] & piece.last, piece.tag[1:2],
                       Const(0, 0), splitter.i.ready)

    def _connect(self, m, k: int, port, bursts: _Bursts) -> None:
        """Bursts and beats of port k's slices to the port."""
        slices, maps = range(k, self._config.slices, len(self.ports)), self._config.map_beats
        own = [self.beats.payload.word_select(number, AXI_BEAT_BITS) for number in slices]
        m.d.comb += [
            # All ports have room where one has: the drain heeds `room`.
            port.beats.valid.eq(self.beats.valid), port.beats.payload.eq(Cat(*own)),
            port.bursts.valid.eq(bursts.valid[k]), port.bursts.payload.address.eq(bursts.addresses[k]),
            port.bursts.payload.length.eq(bursts.length), port.bursts.payload.tag.eq(bursts.tag),
        ]
        if maps:
            place = Cat(bursts.addresses[k][4:4 + exact_log2(maps)], bursts.group)
            m.d.comb += [port.bursts.payload.on_chip.eq(bursts.on_chip), port.bursts.payload.place.eq(place)]
