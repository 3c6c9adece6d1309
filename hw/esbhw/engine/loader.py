"""Reads from memory into the engine's buffers; one for activations, one for weights and constants."""

from dataclasses import dataclass

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from esbflow import instructions
from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import place_bits
from esbflow.registers import MAPS_REGION
from esbhw.engine.axi import ReadPort, name_address
from esbhw.engine.fields import instruction_layout
from esbhw.engine.spread import APART_BITS, STRIDE_BITS, Spread
from esbhw.engine.tokens import COUNT_BITS, joined
from esbhw.engine.transfer import REGION_LAYOUT, BurstSplitter
from esbhw.fabric.idioms import register

ARRIVED_BITS = 5
"""A port may be ahead of another by as many transfers as it has bursts in flight."""
KINDS = 2
"""Kinds of buffers that a loader fills, with tokens of their own."""
ON_CHIP_BIT = 4
"""Of a transfer's tag, with map memories: behind destination and post."""
UNFOLD_BIT = 3
"""Of the opcode: UNFOLD has it, LOAD has not."""


@dataclass(frozen=True)
class _Bursts:
    """What is on offer to the ports: `valid` and `addresses` of each of them."""

    valid: list
    addresses: list
    length: Value
    local: Value
    last: Value
    tag: Value
    group: Value


class Loader(wiring.Component):
    """Carries out LOAD or WEIGHTS instructions.

    An instruction is accepted when the splitter is idle and it and its tokens were there a cycle before; the next one is
    requested while data of this one is still on its way. Beats arrive on `write` in the cycle after the bus offered them,
    and the token is posted with the last one.

    With several ports each brings an equal part of every burst, one after the other in memory. Port k writes beats of its
    own; a "local address" counts rows of as many beats as there are ports. A port does not wait for the others: the token
    is posted with the last beat of the last of them.

    With several slices each of them gets every burst, from a memory of its own: see Spread. Again a port does not wait for
    the others, and the token is posted once all slices have the last beat.

    Members
    -------
    i : In(stream of 256 bits);  regions : In(REGION_LAYOUT)
    free : In(2), is there a free token, of either kind;  stores_count : In(12), how many stores tokens there are
    take_free : Out(2), of either kind;  take_stores : Out(1);  stores_amount : Out(12)
    post : Out(3 if image_beats else 2), of each kind, in the cycle of the last write
        Kinds: of LOAD activations and residuals, of WEIGHTS tiles and constants.
    write_valid : Out(max(ports, slices)), of a part or slice each
    write_destination : Out(3 * ports);  write_address : Out(16 * ports), rows of a beat a port
    write_data : Out(128 * ports), those of port k in the k-th part
    stride : In(STRIDE_BITS), with several slices: see Spread
    With an image buffer a third kind is posted, and UNFOLD waits for it:
    image_here : In(1), is there such a token;  take_image : Out(1)
    unfold : Out(1), an UNFOLD is accepted, whose fields are on `i`
    unfold_idle : In(1), low from the next cycle on until the last one in which it does anything, so that what is accepted
        next is what was on offer then
    layer : Out(12), of the instruction last accepted;  beat : Out(1), of any of the ports
    axi_fault, axi_protocol : Out(1);  address : Out(40), of any of the ports, as ReadPort
    range_fault, field_fault : Out(1);  fault_address : Out(40), as BurstSplitter
    waiting : Out(1), an instruction could be accepted but for its tokens; for the benches
    """

    def __init__(self, config: EngineConfig, opcode: str, ports: int = 1, slices: int = 1):
        self._config = config
        self._opcode = opcode
        self._slices = slices
        self._stripes = slices > 1 and config.stripes
        self._parts = ports if slices == 1 else 1
        self._map_beats = config.map_beats if opcode == "LOAD" else 0
        self._place_bits = place_bits(config) if self._map_beats else 0
        self._group_bits = (slices // ports - 1).bit_length() if slices > 1 else 0
        self._unfolds = opcode == "LOAD" and config.image_beats > 0
        self._kinds = KINDS + self._unfolds
        # `ends`: with the burst's last beat a token of that kind is posted.
        self._tag = StructLayout({"destination": 3, "local": 16, "ends": self._kinds, "group": self._group_bits})
        self.ports = [ReadPort(self._tag.size, self._place_bits) for _ in range(ports)]
        super().__init__({
            "i": In(stream.Signature(instructions.INSTRUCTION_BITS)),
            "regions": In(REGION_LAYOUT),
            "free": In(KINDS), "take_free": Out(KINDS),
            "stores_count": In(COUNT_BITS), "take_stores": Out(1), "stores_amount": Out(COUNT_BITS),
            "post": Out(self._kinds),
            "write_valid": Out(max(ports, slices)), "write_destination": Out(3 * ports), "write_address": Out(16 * ports),
            "write_data": Out(AXI_BEAT_BITS * ports),
            "range_fault": Out(1), "field_fault": Out(1), "axi_fault": Out(1), "axi_protocol": Out(1),
            "fault_address": Out(AXI_ADDRESS_BITS), "layer": Out(12), "beat": Out(1),
            "address": Out(AXI_ADDRESS_BITS), "waiting": Out(1), **({"stride": In(STRIDE_BITS)} if slices > 1 else {}),
            **({"image_here": In(1), "take_image": Out(1), "unfold": Out(1), "unfold_idle": In(1)} if self._unfolds else {}),
        })

    def elaborate(self, platform):
        m = Module()
        ports = self.ports
        tag_layout = StructLayout({"destination": 3, "post": 1, **({"on_chip": 1} if self._map_beats else {})})
        apart_bits = APART_BITS * self._stripes
        m.submodules.splitter = splitter = BurstSplitter(
            self._config.max_burst * self._parts, tag_bits=tag_layout.size + apart_bits, parts=self._parts,
            map_beats=self._map_beats)
        self._accept(m, splitter)
        bursts = self._spread(m, splitter, tag_layout.size) if self._slices > 1 else self._share(m, splitter)
        piece_tag = Signal(tag_layout)
        m.d.comb += [
            piece_tag.eq(bursts.tag),
            self.range_fault.eq(splitter.range_fault), self.field_fault.eq(splitter.field_fault),
            self.axi_fault.eq(Cat(port.fault for port in ports).any()),
            self.axi_protocol.eq(Cat(port.protocol for port in ports).any()),
            self.fault_address.eq(splitter.fault_address),
            self.beat.eq(Cat(port.beat_valid for port in ports).any()),
        ]
        name_address(m, ports, [~port.quiescent for port in ports], [port.fault | port.protocol for port in ports],
                     self.address)
        self._deliver(m, bursts, piece_tag)
        return m

    def _accept(self, m, splitter) -> None:
        """Takes an instruction once its tokens are here, and hands its transfer to the splitter."""
        fields = Signal(instruction_layout(self._opcode, self._config))
        transfer = splitter.i.payload
        # Tokens that are here stay: nobody else takes them. What an instruction takes is off the count long before the
        # splitter is idle again.
        granted, accept, second = Signal(), Signal(), self._second(fields.destination)
        taken, offered = splitter.i.ready & granted, granted
        free, stores = ~fields.wait_free | Mux(second, self.free[1], self.free[0]), self.stores_count >= fields.wait_stores
        take_free, take_stores = Cat(~second, second) & fields.wait_free.replicate(KINDS), fields.wait_stores != 0
        if self._unfolds:
            # UNFOLD, too: one is accepted when neither the splitter nor the unfolder has anything to do.
            unfold, is_unfold = self._unfold(m, accept)
            offered = granted & ~is_unfold
            free = Mux(is_unfold, ~unfold.wait_free | self.free[0], free) & self.unfold_idle
            stores = Mux(is_unfold, ~unfold.wait_image | self.image_here, stores)
            # What is granted was there a cycle before.
            wants_stores = Signal()
            m.d.sync += wants_stores.eq(take_stores & ~is_unfold)
            take_free, take_stores = Mux(is_unfold, unfold.wait_free, take_free), wants_stores
        m.d.comb += [
            fields.eq(self.i.payload),
            splitter.regions.eq(self.regions),
            transfer.region.eq(fields.region), transfer.offset.eq(fields.offset),
            transfer.beats.eq(fields.beats), transfer.segments.eq(fields.segments), transfer.stride.eq(fields.stride),
            transfer.address.eq(fields.address),
            transfer.tag.eq(Cat(fields.destination, fields.post_full,
                                *([fields.region == MAPS_REGION] if self._map_beats else []),
                                *([fields.apart] if self._stripes else []))),
            accept.eq(taken),
            splitter.i.valid.eq(offered), self.i.ready.eq(accept),
            self.waiting.eq(self.i.valid & splitter.i.ready & ~granted),
            self.stores_amount.eq(fields.wait_stores),
        ]
        m.d.sync += granted.eq(self.i.valid & ~accept & free & stores)
        with m.If(accept):
            m.d.comb += [self.take_free.eq(take_free), self.take_stores.eq(take_stores)]
            m.d.sync += self.layer.eq(fields.layer)

    def _deliver(self, m, bursts: "_Bursts", piece_tag) -> None:
        """Hands bursts to the ports, and their beats to the buffers; posts a token with the last beat of all ports."""
        ports = self.ports
        second = self._second(piece_tag.destination)
        kind = Cat(~second, second)
        if self._unfolds:
            image = _is_image(piece_tag.destination)
            kind = Cat(~second, second & ~image, image)
        arrived = []
        for k, port in enumerate(ports):
            tag = Signal(self._tag, name=f"tag_{k}")
            beat = Signal(self._tag, name=f"beat_{k}")
            address = Signal(16, name=f"address_{k}")
            following = Signal(16, name=f"following_{k}")  # address of the next beat of this burst
            m.d.comb += [
                tag.destination.eq(piece_tag.destination), tag.local.eq(bursts.local), tag.group.eq(bursts.group),
                tag.ends.eq(kind & (bursts.last & piece_tag.post).replicate(self._kinds)),
                port.bursts.valid.eq(bursts.valid[k]), port.bursts.payload.address.eq(bursts.addresses[k]),
                port.bursts.payload.length.eq(bursts.length), port.bursts.payload.tag.eq(tag),
                beat.eq(port.beat_tag), address.eq(Mux(port.beat_first, beat.local, following)),
                self.write_data.word_select(k, AXI_BEAT_BITS).eq(port.beat_data),
                self.write_destination.word_select(k, 3).eq(beat.destination),
                self.write_address.word_select(k, 16).eq(address),
                *(self.write_valid[k + group * len(ports)].eq(port.beat_valid & (beat.group == group))
                  for group in range(1 << self._group_bits)),
            ]
            if self._map_beats:
                place = Cat(bursts.addresses[k][4:4 + exact_log2(self._map_beats)], bursts.group)
                m.d.comb += [port.bursts.payload.on_chip.eq(piece_tag.on_chip), port.bursts.payload.place.eq(place)]
            with m.If(port.beat_valid):
                m.d.sync += following.eq(address + 1)
            arrived.append(beat.ends & (port.beat_valid & port.beat_last).replicate(self._kinds))
        for number in range(self._kinds):
            signs = [ends[number] for ends in arrived]
            if self._slices > 1:
                signs = [register(m, sign, f"arrived_{number}_{k}", reset_less=False) for k, sign in enumerate(signs)]
            joined(m, signs, self.post[number], ARRIVED_BITS, f"kind_{number}_",
                   shallow=self._map_beats > 0)

    def _unfold(self, m, accept) -> tuple:
        """(fields of the instruction that is on offer, as UNFOLD has them; is it an UNFOLD?)"""
        unfold, is_unfold = Signal(instruction_layout("UNFOLD", self._config)), self.i.payload[UNFOLD_BIT]
        m.d.comb += [unfold.eq(self.i.payload), self.unfold.eq(accept & is_unfold),
                     self.take_image.eq(self.unfold & unfold.wait_image)]
        return unfold, is_unfold

    def _second(self, destination) -> Value:
        """Whether a destination is of the second kind of buffers."""
        return destination >= 2 if self._opcode == "LOAD" else destination != 0

    def _share(self, m, splitter) -> "_Bursts":
        """An equal part of each burst for each port, all in the same cycle."""
        ports, piece = self.ports, splitter.o.payload
        part_bits = (len(ports) - 1).bit_length()
        length, ready = piece.length >> part_bits, Cat(port.bursts.ready for port in ports).all()
        m.d.comb += splitter.allow.eq(ready) if len(ports) > 1 else splitter.o.ready.eq(ready)
        return _Bursts(
            [splitter.o.valid] * len(ports), [piece.address + (k * length << 4) for k in range(len(ports))], length,
            piece.local >> part_bits, piece.last, piece.tag, Const(0, 1))

    def _spread(self, m, splitter, tag_bits: int) -> "_Bursts":
        """Each burst for each slice."""
        ports = self.ports
        m.submodules.spread = spread = Spread(self._slices, len(ports), tag_bits, self._stripes,
                                              ON_CHIP_BIT if self._map_beats else None)
        wiring.connect(m, splitter.o, spread.i)
        m.d.comb += [spread.stride.eq(self.stride), spread.ready.eq(Cat(port.bursts.ready for port in ports))]
        return _Bursts(
            list(spread.valid),
            [spread.address.word_select(k, AXI_ADDRESS_BITS) for k in range(len(ports))], spread.length, spread.local,
            spread.last, spread.tag, spread.group)


def _is_image(destination) -> Value:
    """Whether a LOAD goes to the image buffer, or to its table."""
    return destination[1:].all()
