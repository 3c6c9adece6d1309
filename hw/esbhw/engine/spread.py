"""Offers each burst of a splitter to all slices: to their ports at once, to slices that share a port one after the other."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from esbflow import instructions
from esbflow.engine_config import AXI_ADDRESS_BITS
from esbhw.engine.axi import LENGTH_BITS
from esbhw.engine.transfer import PAGE_BITS, piece_layout

STRIDE_BITS = 32 - PAGE_BITS
"""SLICE_BYTES counts pages of 4 KB, so that the bursts of all slices are cut alike."""
APART_BITS = dict(instructions.STRIPE_FIELDS["LOAD"])["apart"]


class Spread(wiring.Component):
    """Burst b of slice s lies at the address of b + s * stride.

    Slice s belongs to port s % ports. A burst waits in a register for a cycle; then each port takes it once for each of its
    slices, `group` 0 first. A port takes it when it can; the next group, or burst, comes two cycles after the last port
    has taken this one.

    With `stripes` a transfer may have pages of its own that are added to the stride: the highest APART_BITS of the tag. They
    are on `i` two cycles before the transfer's first burst is.

    With `on_chip` that bit of the tag says that slices have the burst at the same address, in map memories of their own.

    Members
    -------
    i : In(stream of piece_layout(tag_bits + APART_BITS * stripes))
    stride : In(STRIDE_BITS), in pages, still while bursts come
    valid : Out(ports), on offer to each port;  ready : In(ports)
    address : Out(ports * 40);  length : Out(LENGTH_BITS);  local : Out(16);  tag : Out(tag_bits), without the pages
    group : Out(range(max(2, slices // ports)));  later : Out(1), the group is not 0
    last : Out(1), of the transfer and its groups;  idle : Out(1), no burst is here
    """

    def __init__(self, slices: int, ports: int, tag_bits: int, stripes: bool = False, on_chip: int | None = None):
        self._on_chip = on_chip
        self._ports, self._groups, self._tag_bits, self._stripes = ports, slices // ports, tag_bits, stripes
        self._all_tag_bits = tag_bits + APART_BITS * stripes
        super().__init__({
            "i": In(stream.Signature(piece_layout(self._all_tag_bits))), "stride": In(STRIDE_BITS),
            "ready": In(ports), "valid": Out(ports), "address": Out(AXI_ADDRESS_BITS * ports),
            "length": Out(LENGTH_BITS), "local": Out(16), "tag": Out(tag_bits), "last": Out(1),
            "group": Out(range(max(2, self._groups))), "later": Out(1), "idle": Out(1, init=1),
        })

    def elaborate(self, platform):
        m = Module()
        ports, groups = self._ports, self._groups
        piece = Signal(piece_layout(self._all_tag_bits))
        last_group = Signal() if groups > 1 else Const(1, 1)
        done = Signal()  # all ports have taken this group
        m.d.comb += [self.i.ready.eq(self.idle), done.eq(~self.idle & ~self.valid.any())]
        m.d.sync += [
            self.idle.eq(Mux(self.idle, ~self.i.valid, done & last_group)),
            self.valid.eq(Mux(self.idle, self.i.valid.replicate(ports),
                              (done & ~last_group).replicate(ports) | (self.valid & ~self.ready))),
        ]
        with m.If(self.idle):
            m.d.sync += piece.eq(self.i.payload)
        stride, offsets = self._of_transfer(m) if self._stripes else (self.stride, self._offsets(m))
        if self._on_chip is not None:
            stride, *offsets = [value & ~piece.tag[self._on_chip].replicate(len(value)) for value in (stride, *offsets)]
        if groups > 1:
            with m.If(self.idle):
                m.d.sync += [self.group.eq(0), self.later.eq(0), last_group.eq(0)]
            with m.Elif(done):
                m.d.sync += [
                    piece.address[PAGE_BITS:].eq(piece.address[PAGE_BITS:] + (stride << (ports - 1).bit_length())),
                    self.group.eq(self.group + 1), self.later.eq(1), last_group.eq(self.group == groups - 2)]
        m.d.comb += [self.length.eq(piece.length), self.local.eq(piece.local), self.tag.eq(piece.tag[:self._tag_bits]),
                     self.last.eq(piece.last & last_group)]
        for k, offset in enumerate(offsets):
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

    def _of_transfer(self, m) -> tuple:
        """(the stride of the burst that is here, k times it for each port k), from registers.

        The transfer's own stride and its multiples are known in the two cycles before its first burst may come here. They
        are sums where there is one, as 3 = 1 + 2; stripe_rows makes 4 - 1 of it, which would be another circuit here.
        """
        stride = Signal(STRIDE_BITS, name="coming_stride")
        m.d.sync += stride.eq(self.stride + self.i.payload.tag[self._tag_bits:])
        parts = {3: (1, 2), 5: (1, 4), 6: (2, 4), 7: (-1, 8)}
        coming, here = {0: Const(0, 1), 1: stride}, {0: Const(0, 1)}
        for k in range(2, self._ports):
            if k in parts:
                low, high = parts[k]
                coming[k] = Signal(STRIDE_BITS + k.bit_length(), name=f"coming_{k}")
                m.d.sync += coming[k].eq((stride << high.bit_length() - 1)
                                         + (-stride if low < 0 else stride << low.bit_length() - 1))
            else:
                coming[k] = stride << k.bit_length() - 1
        for k in range(1, max(2, self._ports)):
            here[k] = Signal(len(coming[k]), name=f"stride_{k}")
            with m.If(self.idle):
                m.d.sync += here[k].eq(coming[k])
        return here[1], [here[k] for k in range(self._ports)]
