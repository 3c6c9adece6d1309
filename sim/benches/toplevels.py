"""Blocks with an AXI4 master, and the whole engine, wired for cocotbext.axi."""

from amaranth import Elaboratable, Instance, Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import weight_masters
from esbhw.engine.axi import read_signature, write_signature
from esbhw.engine.control import lite_signature

READ_IDS = ("arid", "rid")
WRITE_IDS = ("awid", "bid")


class AxiTop(wiring.Component):
    """A block's own ports, plus ID signals that nobody drives: cocotbext.axi insists on them.

    Parameters
    ----------
    block : a component; a fetch or a loader brings its bus as `block.port` or `block.ports`, which outlives a run: then the
        block is reset while `run` is low, as the engine does, and the port is not.
    """

    def __init__(self, block):
        self.block = block
        ports = getattr(block, "ports", None)  # a loader's, here always one
        self.port = ports[0] if ports else getattr(block, "port", None)
        members = dict(block.signature.members)
        if self.port is not None:
            members |= {"axi": Out(read_signature()), "run": In(1), "quiescent": Out(1)}
        names = members["axi"].signature.members
        ids = (READ_IDS if "araddr" in names else ()) + (WRITE_IDS if "awaddr" in names else ())
        super().__init__({**members, **{f"axi__{name}": In(1) for name in ids}})

    def elaborate(self, platform):
        m = Module()
        if self.port is None:
            m.submodules.block = self.block
        else:
            m.submodules.port = self.port
            m.submodules.block = ResetInserter(~self.run)(self.block)
            m.d.comb += self.port.run.eq(self.run)
            _join(m, self, self.port, lambda path: path[0] in ("axi", "quiescent"))
        _join(m, self, self.block, lambda path: True)
        return m


def _join(m, outer, inner, chosen):
    for path, member, value in inner.signature.flatten(inner):
        if chosen(path):
            port = outer
            for step in path:
                port = getattr(port, step)
            m.d.comb += port.eq(value) if member.flow == Out else value.eq(port)


class EngineTop(Elaboratable):
    """Holds engine.v as users get it, whatever its size, and adds the ID signals that cocotbext.axi insists on."""

    def __init__(self, config: EngineConfig):
        buses = (("s_axi", lite_signature), ("m_axi_program", read_signature), ("m_axi_activations", read_signature),
                 ("m_axi_activations", write_signature), *((name, read_signature) for name in weight_masters(config)))
        self._module = config.module_name
        self._connections = {}
        for bus, signature in buses:
            for name, member in signature().members.items():
                self._connect(f"{bus}_{name}", member)
        for name, member in (("ap_clk", In(1)), ("ap_rst_n", In(1)), ("irq", Out(1))):
            self._connect(name, member)
        ids = [f"{bus}_{name}" for bus, signature in buses[1:]
               for name in (READ_IDS if signature is read_signature else WRITE_IDS)]
        self.ports = [*self._connections.values(), *(Signal(name=name) for name in ids)]

    def _connect(self, name, member):
        self._connections[f"{'o' if member.flow == Out else 'i'}_{name}"] = Signal(member.shape, name=name)

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = Instance(self._module, **self._connections)
        return m
