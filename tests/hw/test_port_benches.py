"""The AXI4 masters against a bus model that is not ours."""

from esbhw.engine.axi import ReadPort, WritePort
from sim.benches import build
from sim.benches.toplevels import AxiTop


def test_the_read_port_finishes_what_it_began():
    build.run("read_port_bench", build.build("read_port", AxiTop(ReadPort(tag_bits=6))))


def test_the_write_port_never_waits_for_data_on_the_bus():
    build.run("write_port_bench", build.build("write_port", AxiTop(WritePort(32))), depth=32)
