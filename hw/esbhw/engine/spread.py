"""Offers each burst of a splitter to all slices: to their ports at once, to slices that share a port one after the other."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_ADDRESS_BITS
from esbhw.engine.axi import LENGTH_BITS
from esbhw.engine.transfer import PAGE_BITS, piece_layout

STRIDE_BITS = 32 - PAGE_BITS
"""SLICE_BYTES counts pages of 4 KB, so that the bursts of all slices are cut alike."""


class Spread(wiring.Component):
    """Burst b of slice s lies at the address of b + s * stride.

    Slice s belongs to port s % ports. Where each port has one slice, bursts pass straight through; else a burst waits in a
    register for a cycle, and the ports take it once for each of their slices, `group` 0 first. All ports take a burst in
    the same cycle.

    Members
    -------
    i : In(stream of piece_layout);  stride : In(STRIDE_BITS), in pages, still while bursts come
    ready : In(ports), each port could take the burst
    valid : Out(1);  others : Out(ports), with bit k: all ports but k are ready
    address : Out(ports * 40);  length, local, tag, group : Out, of all ports;  last : Out(1), of the transfer and its groups
    """

    def __init__(self, slices: int, ports: int, tag_bits: int):
        self._ports, self._groups, self._tag_bits = ports, slices // ports, tag_bits
        super().__init__({
            "i": In(stream.Signature(piece_layout(tag_bits))), "stride": In(STRIDE_BITS),
            "ready": In(ports), "valid": Out(1), "others": Out(ports), "address": Out(AXI_ADDRESS_BITS * ports),
            "length": Out(LENGTH_BITS), "local": Out(16), "tag": Out(tag_bits), "last": Out(1),
            "group": Out(range(max(2, self._groups))),
        })

    def elaborate(self, platform):
        m = Module()
        ports, groups, piece = self._ports, self._groups, self.i.payload
        for k in range(ports):
            m.d.comb += self.others[k].eq(Cat(self.ready[j] for j in range(ports) if j != k).all())
        if groups == 1:
            last_group = Const(1, 1)
            m.d.comb += [self.valid.eq(self.i.valid), self.i.ready.eq(self.ready.all())]
        else:
            piece, last_group = Signal(piece_layout(self._tag_bits)), Signal()
            taken = self.valid & self.ready.all()
            m.d.comb += self.i.ready.eq(~self.valid)
            m.d.sync += self.valid.eq(Mux(self.valid, ~(taken & last_group), self.i.valid))
            step = self.stride << (ports - 1).bit_length()
            with m.If(~self.valid):
                m.d.sync += [piece.eq(self.i.payload), self.group.eq(0), last_group.eq(0)]
            with m.Elif(taken):
                m.d.sync += [piece.address[PAGE_BITS:].eq(piece.address[PAGE_BITS:] + step), self.group.eq(self.group + 1),
                             last_group.eq(self.group == groups - 2)]
        m.d.comb += [self.length.eq(piece.length), self.local.eq(piece.local), self.tag.eq(piece.tag),
                     self.last.eq(piece.last & last_group)]
        for k, offset in enumerate(self._offsets(m)):
            page = piece.address[PAGE_BITS:] + offset
            m.d.comb += self.address.word_select(k, AXI_ADDRESS_BITS).eq(Cat(piece.address[:PAGE_BITS],
                                                                            page[:AXI_ADDRESS_BITS - PAGE_BITS]))
        return m

    def _offsets(self, m) -> list:
        """k * stride for each port k, from registers: the stride is still long before a run."""
        offsets = [Const(0, 1), self.stride]
        for k in range(2, self._ports):
            if k & 1:
                offset = Signal(STRIDE_BITS + k.bit_length(), name=f"offset_{k}")
                m.d.sync += offset.eq(offsets[k - 1] + self.stride)
                offsets.append(offset)
            else:
                offsets.append(offsets[k // 2] << 1)
        return offsets[:self._ports]
