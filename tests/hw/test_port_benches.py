"""The AXI4 masters and the units that use them, against a bus model that is not ours."""

import dataclasses

import pytest

from esbflow.engines import ENGINES
from esbhw.engine.axi import ReadPort, WritePort
from esbhw.engine.fetch import Fetch
from esbhw.engine.loader import Loader
from sim.benches import build
from sim.benches.toplevels import AxiTop


def test_the_read_port_finishes_what_it_began():
    build.run("read_port_bench", build.build("read_port", AxiTop(ReadPort(tag_bits=6))))


def test_the_write_port_never_waits_for_data_on_the_bus():
    build.run("write_port_bench", build.build("write_port", AxiTop(WritePort(32))), depth=32)


@pytest.mark.parametrize("size", [ENGINES["tiny4x4"], dataclasses.replace(ENGINES["small8x16-channel"], image_beats=64)],
                         ids=["least", "every_opcode"])
def test_the_fetch_dispatches_in_order_and_knows_a_bad_program(size):
    build.run("fetch_bench", build.build("fetch", AxiTop(Fetch(size))), size)


def test_the_loader_fills_buffers_and_posts_tokens():
    size = ENGINES["tiny4x4"]
    build.run("loader_bench", build.build("loader", AxiTop(Loader(size, "LOAD"))), size)
