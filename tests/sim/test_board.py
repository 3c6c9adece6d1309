"""The simulated ZCU102 through PYNQ's own calls, and the driver on it against the integer graph's reference."""

import asyncio
import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pynq = pytest.importorskip("pynq")

from pynqmetadata.frontends import Metadata
from pynqmetadata.views.runtime import RuntimeMetadataParser

from esbflow.commands import doctor_board
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.registers import ID_VALUE, REGISTERS, vlnv
from esbflow.runtime import pynq_driver
from esbflow.runtime.errors import EngineFault
from esbhw.hwh import IO_PLL_MHZ, hwh
from esbhw.manifest import manifest
from esbsim.board import CONTROLLER_BASE, ENGINE_BASE, read_overlay
from esbsim.simulator import MemoryTiming

CONFIG = ENGINES["tiny4x4"]


def test_pynqs_parser_reads_the_handoff(bit):
    parser = RuntimeMetadataParser(Metadata(input=bit.with_suffix(".hwh")))
    engine = parser.ip_dict["esb_engine_0"]
    assert engine["type"] == vlnv(CONFIG) and engine["phys_addr"] == ENGINE_BASE and engine["addr_range"] == 4096
    assert {name: entry["address_offset"] for name, entry in engine["registers"].items()} == {
        name: register.offset for name, register in REGISTERS.items()}
    assert engine["registers"]["STATUS"]["fields"]["code"]["bit_offset"] == 8
    assert engine["registers"]["STATUS"]["description"] == REGISTERS["STATUS"].description
    assert engine["parameters"]["ROWS"] == "4" and engine["parameters"]["HASH"] == f"{CONFIG.hash:016x}"
    assert parser.interrupt_pins["esb_engine_0/irq"]["controller"] == "axi_intc_0"
    assert parser.interrupt_controllers["axi_intc_0"] == {"parent": "", "index": 0, "raw_irq": 121}


@pytest.mark.parametrize("mhz", [1, 20, 100, 250, 333, 700])
def test_every_clock_fits_the_divisors(mhz, tmp_path):
    path = tmp_path / "engine.hwh"
    path.write_text(hwh(replace(CONFIG, clock_mhz=mhz)))
    clock = RuntimeMetadataParser(Metadata(input=path)).clock_dict[0]
    assert clock["enable"] and 1 <= clock["divisor0"] <= 63 and 1 <= clock["divisor1"] <= 63
    assert IO_PLL_MHZ["zynq_ultra_ps_e"] / clock["divisor0"] / clock["divisor1"] == pytest.approx(mhz, rel=0.2)


def test_a_compute_clock_is_the_second_of_the_processor(tmp_path):
    path = tmp_path / "engine.hwh"
    for mhz in (None, 333):
        path.write_text(hwh(CONFIG, compute_mhz=mhz))
        parser = RuntimeMetadataParser(Metadata(input=path))
        first, second = parser.clock_dict[0], parser.clock_dict[1]
        assert first["enable"] and bool(second["enable"]) == bool(mhz)
        assert parser.ip_dict["esb_engine_0"]["parameters"].get("COMPUTE_CLOCK_MHZ") == (str(mhz) if mhz else None)
    assert IO_PLL_MHZ["zynq_ultra_ps_e"] / second["divisor0"] / second["divisor1"] == pytest.approx(333, rel=0.2)


@pytest.mark.parametrize("config", [CONFIG, ENGINES["zcu102-w4a4"], ENGINES["pynq-z2-w4a4"]], ids=lambda config: config.name)
def test_the_doctor_finds_a_port_for_every_master(tmp_path, config):
    path = tmp_path / "engine.hwh"
    path.write_text(hwh(config))
    path.with_suffix(".json").write_text(json.dumps(manifest(config)))
    entry, = doctor_board.check_port_widths(tmp_path / "engine.bit")
    assert entry["ok"] and "[128] bits" in entry["needed"]
    path.write_text(path.read_text().replace('MASTERBUSINTERFACE="m_axi_weights"', 'MASTERBUSINTERFACE="m_axi_other"'))
    assert not doctor_board.check_port_widths(tmp_path / "engine.bit")[0]["ok"]


def test_the_doctor_says_which_rails_have_sensors(monkeypatch):
    monkeypatch.setattr(pynq, "get_rails", dict)
    assert doctor_board.power_sensors() == [{"check": "power sensors", "ok": True, "fix": "", "needed":
                                             "none that PYNQ knows: docs/pynq_image.md says how to name them"}]
    rail = SimpleNamespace(power=SimpleNamespace(value=1.0), voltage=None, current=None)
    monkeypatch.setattr(pynq, "get_rails", lambda: {"VCCINT": rail, "12V": SimpleNamespace(power=None, voltage=None, current=None)})
    assert doctor_board.power_sensors()[0]["needed"] == "VCCINT"


def test_only_marked_overlays_are_loaded(bit, tmp_path):
    assert read_overlay(bit) == CONFIG
    assert bit.read_bytes().startswith(b"esbflow simulated overlay: this is text and no bitstream")
    real = tmp_path / "real.bit"
    real.write_bytes(b"\x00\x09\x0f\xf0" * 100)
    with pytest.raises(ValueError, match=r"real.bit was not made for the simulated board; make one with"):
        read_overlay(real)


def test_overlay_registers_mmio_and_clocks_work(overlay):
    engine = overlay.esb_engine_0
    assert overlay.is_loaded() and type(engine).__name__ == "EsbEngineDriver"
    assert engine.read(0) == pynq.MMIO(ENGINE_BASE, 4096).read(0) == ID_VALUE == int(engine.mmio.array[0])
    engine.register_map.SCRATCH = 1234
    assert int(engine.register_map.SCRATCH) == 1234 and engine.register_map.SIZE.cols == 4
    assert pynq.Clocks.fclk0_mhz == pytest.approx(CONFIG.clock_mhz, rel=1e-3)
    with pytest.raises(RuntimeError, match="bus error: nothing answers a read of 0xb0000000"):
        pynq.MMIO(0xB000_0000, 4096).read(0)


def test_buffers_are_not_coherent_and_lie_above_4_gigabytes(overlay, board):
    buffer = pynq.allocate((1024,), np.uint32)
    offset = buffer.device_address - board.ddr.base
    memory = board.ddr.memory[offset:offset + buffer.nbytes].view(np.uint32)
    assert buffer.device_address >= 1 << 32 and buffer.device_address % 4096 == 0
    buffer[:] = 7
    assert (memory != 7).all()
    buffer[16:32].flush()  # a part only
    assert (memory[16:32] == 7).all() and (memory[32:] != 7).all()
    memory[:] = 9
    assert (buffer == 7).all()
    buffer.invalidate()
    assert (buffer == 9).all()
    coherent = pynq.allocate((4,), np.uint8, cacheable=0)
    coherent[:] = 3
    assert (board.ddr.memory[coherent.device_address - board.ddr.base:][:4] == 3).all()


def test_freed_memory_is_used_again_and_exhaustion_is_an_error(overlay, board):
    free = board.ddr.free_bytes
    buffers = [pynq.allocate((5000,), np.uint8) for _ in range(4)]
    assert board.ddr.free_bytes == free - 4 * 8192
    for i in (1, 3, 0, 2):
        buffers[i].freebuffer()
    del buffers
    assert board.ddr.free_bytes == free
    with pytest.raises(RuntimeError, match=r"Allocate failed: .* bytes asked for"):
        pynq.allocate((1 << 40,), np.uint8)


def test_the_driver_equals_the_graph_by_interrupt(overlay, network):
    program, images, expected = network
    engine = overlay.esb_engine_0
    assert engine.irq is not None
    engine.load(program)
    result = engine.run(images)
    assert (result.outputs == expected).all()
    assert result.runs == 3 and result.cycles > 0


def test_the_driver_equals_the_graph_by_polling(bit, board, network):
    program, images, expected = network
    board.connect_interrupt(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PYNQ says that it found no UIO device
        engine = pynq.Overlay(str(bit)).esb_engine_0
    assert engine.irq is None
    engine.load(program)
    assert (engine.run(images).outputs == expected).all()


def test_the_driver_works_inside_a_running_event_loop(overlay, network):
    """As in a notebook, where a loop is always running."""
    program, images, expected = network

    async def cell():
        overlay.esb_engine_0.load(program)
        return overlay.esb_engine_0.run(images[:2]).outputs

    assert (asyncio.run(cell()) == expected[:2]).all()


def test_coroutines_and_two_programs_in_flight(overlay, network):
    """The run that waits is the other program's."""
    program, images, expected = network
    engine = overlay.esb_engine_0
    engine.load(program)
    other = engine.another()
    random = np.random.default_rng(8)
    graph = random_graph(random, layers=2, channels=6, size=7, kinds=("conv",))
    more = random_images(random, graph, 3)
    other.load(compile_graph(graph, CONFIG, batch=1))
    runs = [engine.submit(images), other.submit(more), engine.submit(images[:1]), other.submit(more)]
    assert (runs[0].result(60).outputs == expected).all() and (runs[2].result(60).outputs == expected[:1]).all()
    assert all((run.result(60).outputs == execute(graph, more)).all() for run in (runs[1], runs[3]))

    async def cell():
        waiting = asyncio.ensure_future(engine.run_async(images))
        await asyncio.sleep(0)
        waiting.cancel()
        return await asyncio.gather(engine.run_async(images), other.run_async(more), engine.run_async(images[:3]))

    first, second, third = asyncio.run(cell())
    assert (first.outputs == expected).all() and (second.outputs == execute(graph, more)).all()
    assert (third.outputs == expected[:3]).all()
    other.unload()


def test_slow_and_stalling_memory_changes_cycles_but_no_result(bit, board, network):
    program, images, expected = network
    cycles = []
    for timing, shared in ((MemoryTiming(latency=20), None), (MemoryTiming(latency=80, jitter=30, stall=0.3, seed=4), 8)):
        board.timing, board.shared_bytes_per_cycle = timing, shared
        engine = pynq.Overlay(str(bit)).esb_engine_0
        engine.load(program)
        result = engine.run(images)
        assert (result.outputs == expected).all()
        cycles.append(result.cycles)
    assert cycles[1] > cycles[0]


@pytest.mark.parametrize("port, unit", [("program", "fetch"), ("weights", "weights"), ("activations", "load")])
def test_a_bus_error_names_its_unit_and_the_next_run_works(overlay, board, network, port, unit):
    program, images, expected = network
    engine = overlay.esb_engine_0
    engine.load(program)
    board.simulator.set_fault(0, 1 << 40, "slverr", port)
    with pytest.raises(EngineFault, match="a read was answered with SLVERR or DECERR") as caught:
        engine.run(images)
    assert caught.value.code == "axi_read" and caught.value.unit == unit and caught.value.address >= board.ddr.base
    board.simulator.clear_faults()
    assert (engine.run(images).outputs == expected).all()


def test_the_interrupt_controller_is_on_the_bus(overlay):
    controller = pynq.MMIO(CONTROLLER_BASE, 32)
    controller.write(0x10, 1)
    assert controller.read(0x08) == 1
    controller.write(0x14, 1)
    assert controller.read(0x08) == 0


def test_a_missing_handoff_is_named(bit, tmp_path, board):
    lonely = tmp_path / "lonely.bit"
    lonely.write_bytes(bit.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"lonely.hwh is missing; an overlay is a .bit and a .hwh of the same name"):
        pynq.Overlay(str(lonely))


assert pynq_driver  # imported so that PYNQ binds it
