"""Reads from memory into the engine's buffers; one for activations, one for weights and constants."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out

from esbflow import instructions
from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS, EngineConfig
from esbhw.engine.axi import ReadPort
from esbhw.engine.fields import instruction_layout
from esbhw.engine.tokens import COUNT_BITS
from esbhw.engine.transfer import REGION_LAYOUT, BurstSplitter

TAG = StructLayout({"destination": 3, "local": 16, "last": 1, "post": 1})


class Loader(wiring.Component):
    """Carries out LOAD or WEIGHTS instructions.

    An instruction is accepted when the splitter is idle and its tokens are there; requests of the next one follow
    while data of this one is still on its way. Beats arrive on `write` in the cycle after the bus offered them, and the
    token is posted with the last one.

    Members
    -------
    i : In(stream of 256 bits)
    free_count, stores_count : In, tokens available for `free_select`ed destination
    take_free, take_stores, stores_amount, take_destination : Out
    post : Out(1), with post_destination, in the cycle of the last write
    write_valid, write_destination, write_address (beats), write_data : Out
    layer : Out(12), of the instruction last accepted
    """

    def __init__(self, config: EngineConfig, opcode: str):
        self._config = config
        self._opcode = opcode
        self.port = ReadPort(tag_bits=TAG.size)
        super().__init__({
            "i": In(stream.Signature(instructions.INSTRUCTION_BITS)),
            "regions": In(REGION_LAYOUT),
            "destination": Out(3),
            "free_count": In(COUNT_BITS), "take_free": Out(1),
            "stores_count": In(COUNT_BITS), "take_stores": Out(1), "stores_amount": Out(COUNT_BITS),
            "post": Out(1), "post_destination": Out(3),
            "write_valid": Out(1), "write_destination": Out(3), "write_address": Out(16),
            "write_data": Out(AXI_BEAT_BITS),
            "range_fault": Out(1), "field_fault": Out(1), "axi_fault": Out(1), "axi_protocol": Out(1),
            "fault_address": Out(AXI_ADDRESS_BITS), "layer": Out(12), "quiescent": Out(1), "beat": Out(1),
            "waiting": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        port = self.port
        tag_layout = StructLayout({"destination": 3, "post": 1})
        m.submodules.splitter = splitter = BurstSplitter(self._config.max_burst, tag_bits=tag_layout.size)
        fields = Signal(instruction_layout(self._opcode))
        transfer = splitter.i.payload
        granted = Signal()
        m.d.comb += [
            fields.eq(self.i.payload),
            splitter.regions.eq(self.regions),
            transfer.region.eq(fields.region), transfer.offset.eq(fields.offset),
            transfer.beats.eq(fields.beats), transfer.segments.eq(fields.segments),
            transfer.stride.eq(fields.stride), transfer.address.eq(fields.address),
            transfer.tag.eq(Cat(fields.destination, fields.post_full)),
            self.destination.eq(fields.destination),
            granted.eq((~fields.wait_free | (self.free_count != 0)) & (self.stores_count >= fields.wait_stores)),
            splitter.i.valid.eq(self.i.valid & granted),
            self.i.ready.eq(splitter.i.ready & granted),
            self.waiting.eq(self.i.valid & splitter.i.ready & ~granted),
            self.stores_amount.eq(fields.wait_stores),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.comb += [self.take_free.eq(fields.wait_free), self.take_stores.eq(fields.wait_stores != 0)]
            m.d.sync += self.layer.eq(fields.layer)

        piece = splitter.o.payload
        piece_tag = Signal(tag_layout)
        tag = Signal(TAG)
        m.d.comb += [
            piece_tag.eq(piece.tag),
            tag.destination.eq(piece_tag.destination), tag.local.eq(piece.local),
            tag.last.eq(piece.last), tag.post.eq(piece_tag.post),
            port.bursts.valid.eq(splitter.o.valid), splitter.o.ready.eq(port.bursts.ready),
            port.bursts.payload.address.eq(piece.address), port.bursts.payload.length.eq(piece.length),
            port.bursts.payload.tag.eq(tag),
        ]

        beat = Signal(TAG)
        following = Signal(16)  # address of the next beat of this burst
        m.d.comb += [
            beat.eq(port.beat_tag),
            self.beat.eq(port.beat_valid),
            self.write_valid.eq(port.beat_valid), self.write_data.eq(port.beat_data),
            self.write_destination.eq(beat.destination),
            self.write_address.eq(Mux(port.beat_first, beat.local, following)),
            self.post.eq(port.beat_valid & port.beat_last & beat.last & beat.post),
            self.post_destination.eq(beat.destination),
            self.range_fault.eq(splitter.range_fault), self.field_fault.eq(splitter.field_fault),
            self.axi_fault.eq(port.fault), self.axi_protocol.eq(port.protocol),
            self.fault_address.eq(Mux(splitter.range_fault, splitter.fault_address, port.fault_address)),
            self.quiescent.eq(port.quiescent),
        ]
        with m.If(port.beat_valid):
            m.d.sync += following.eq(self.write_address + 1)
        return m
