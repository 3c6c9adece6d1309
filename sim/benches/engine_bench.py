"""The engine runs a compiled network bit for bit, whatever the bus does to it, and again after every kind of failure."""

import cocotb
import numpy as np

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.graph.execute import execute
from esbflow.instructions import decode, encode
from esbflow.registers import COUNTERS, ERRORS, REGIONS, UNITS
from esbflow.requantizer import drain_latency
from sim.benches.engine_host import ABORT, Host, small_graph
from sim.benches.testbench import config

GRAPH = small_graph()
PROGRAM = compile_graph(GRAPH, config())
IMAGES = np.random.default_rng(1).integers(0, 256, (1, *GRAPH.input.shape), dtype=np.uint8)
EXPECTED = execute(GRAPH, IMAGES)
DONE = {"busy": 0, "done": 1, "error": 0, "quiescent": 1, "code": 0, "unit": 0}
CODES = {name: code for code, (name, _) in ERRORS.items()}


async def begin(dut, ideal=None) -> Host:
    host = Host(dut, PROGRAM, ideal)
    await host.reset()
    await host.load()
    return host


async def good_run(host) -> None:
    await host.start(IMAGES)
    assert await host.finish() == DONE
    assert np.array_equal(host.outputs, EXPECTED)


async def failed_run(host, code: str, unit: str) -> int:
    """A run that must end with an error; returns the error's address."""
    status = await host.finish()
    assert status == {"busy": 0, "done": 0, "error": 1, "quiescent": 1, "code": CODES[code],
                      "unit": UNITS.index(unit)}, status
    return await host.read("ERROR_ADDRESS_LO") | await host.read("ERROR_ADDRESS_HI") << 32


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(latency=[1, 40])
async def ideal_memory_gives_the_cycle_model_s_cycles(dut, latency):
    host = await begin(dut, ideal=latency)
    await good_run(host)
    model = count_cycles(PROGRAM, latency)
    counters = await host.counters()
    assert counters["cycles"] == model.total and counters["compute"] == model.compute
    assert host.log[:, 0].tolist() == model.stamps
    assert host.log[:, -1].tolist() == list(range(len(model.stamps))), "a record ends with its layer's number"
    assert host.log[-1, :len(COUNTERS)].tolist() <= list(counters.values())
    assert counters["program_beats"] == 2 * len(PROGRAM.instructions)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def a_bus_that_stalls_changes_no_output(dut, stall):
    host = await begin(dut)
    for seed, memory in enumerate((*host.reads.values(), host.writes)):
        memory.pause(stall, seed)
    await good_run(host)
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(case=[("program", "program", "axi_read", "fetch"), ("weights", "weights", "axi_read", "weights"),
                          ("activations", "input", "axi_read", "load"), (None, "workspace", "axi_write", "store"),
                          (None, "log", "axi_write", "store")])
async def an_error_response_stops_the_run_and_the_next_one_works(dut, case):
    port, region, code, unit = case
    host = await begin(dut)
    memory = host.reads[port] if port else host.writes
    memory.failing = {host.bases[region] + 16}
    await host.start(IMAGES)
    address = await failed_run(host, code, unit)
    assert address <= host.bases[region] + 16 < address + 16 * config().max_burst
    memory.failing = set()
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(after=[3, 60, 400])
async def an_abort_at_any_time_leaves_the_engine_usable(dut, after):
    host = await begin(dut)
    for seed, memory in enumerate((*host.reads.values(), host.writes)):
        memory.pause(0.3, seed)
    await host.start(IMAGES)
    await host.tick(after)
    await host.write("CONTROL", ABORT)
    await failed_run(host, "aborted", "none")
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def beats_that_wait_for_their_burst_are_forgotten_after_an_abort(dut):
    """Abort while the drain has made some beats of a store and not all: the next run's stores must not begin with them."""
    host = await begin(dut)
    groups_a_beat = 128 // (4 * config().requantize_lanes)
    await host.start(IMAGES)
    while await host.read("COUNT_DRAIN") < drain_latency(config()) + groups_a_beat:
        await host.tick()
    await host.write("CONTROL", ABORT)
    await failed_run(host, "aborted", "none")
    groups = await host.read("COUNT_DRAIN")
    assert groups < drain_latency(config()) + config().max_burst * groups_a_beat, "no burst was complete"
    assert await host.read("COUNT_STORE_BEATS") == 0
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(after=[30, 350])
async def a_reset_in_mid_run_leaves_the_engine_usable(dut, after):
    host = await begin(dut)
    await host.start(IMAGES)
    await host.tick(after)
    await host.reset()
    assert await host.status() == {**DONE, "done": 0}
    assert await host.read("PROGRAM_LENGTH") == 0, "a reset forgets the registers"
    await host.load()
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(case=[("program", "fetch"), ("weights", "weights"), ("activations", "load"), (None, "store")])
async def a_memory_that_never_answers_is_named_by_the_watchdog(dut, case):
    port, unit = case
    host = await begin(dut)
    await host.write("WATCHDOG", 300)
    silent = host.reads[port].r_channel if port else host.writes.b_channel
    silent.pause = True
    await host.start(IMAGES)
    for _ in range(3000):
        await host.tick()
        if dut.irq.value == 1:
            break
    status = await host.status()
    assert (status["code"], status["unit"]) == (CODES["watchdog"], UNITS.index(unit)) and not status["quiescent"]
    await host.write("CONTROL", 1)
    assert not (await host.status())["busy"], "no start while the bus owes an answer"
    silent.pause = False
    await failed_run(host, "watchdog", unit)
    await good_run(host)


WRONG = {  # what is changed in the first instruction of its kind -> code, unit
    "unknown opcode": ("LOAD", {"opcode": 15}, "opcode", "fetch"),
    "load outside its region": ("LOAD", {"offset": 1 << 20}, "range", "load"),
    "weights outside their region": ("WEIGHTS", {"offset": 1 << 20}, "range", "weights"),
    "store outside its region": ("DRAIN", {"offset": 1 << 20}, "range", "store"),
    "load of nothing": ("LOAD", {"beats": 0}, "field", "load"),
    "load behind the buffer": ("LOAD", {"address": 5000}, "field", "load"),
    "residual behind the buffer": ("LOAD", {"destination": 2, "address": 5000}, "field", "load"),
    "tile behind the slots": ("WEIGHTS", {"address": 5000}, "field", "weights"),
    "constants behind the bank": ("WEIGHTS", {"destination": 1, "address": 5000}, "field", "weights"),
    "pass without a slot": ("PASS", {"slot": 100}, "field", "compute"),
    "drain of no digits": ("DRAIN", {"digits": 0}, "field", "store"),
}


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(case=list(WRONG))
async def a_wrong_instruction_is_named_and_the_next_run_works(dut, case):
    opcode, changes, code, unit = WRONG[case]
    words = PROGRAM.words
    at = next(i for i, word in enumerate(words) if decode(word)[0] == opcode)
    fields = {**decode(words[at])[1], **changes}
    number = fields.pop("opcode", None)
    fields["layer"] = 9
    wrong = encode(opcode, **fields)
    wrong = wrong if number is None else wrong & ~15 | number
    host = await begin(dut)
    host.put("program", b"".join(word.to_bytes(32, "little") for word in [*words[:at], wrong, *words[at + 1:]]))
    await host.start(IMAGES)
    address = await failed_run(host, code, unit)
    if "behind" not in case:  # noticed when data comes in, and then the unit may already be further on
        assert await host.read("ERROR_LAYER") == 9
    assert address == (host.bases[REGIONS[fields["region"]]] + 16 * fields["offset"] if code == "range" else 0)
    await host.load()
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def a_program_without_an_end_is_an_error_and_the_next_run_works(dut):
    host = await begin(dut)
    await host.write("PROGRAM_LENGTH", len(PROGRAM.words) - 1)
    await host.start(IMAGES)
    await failed_run(host, "end", "fetch")
    await host.load()
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def an_accumulator_that_overflows_stops_the_run(dut):
    """No compiled program does this: the largest weights times the largest activations, again and again."""
    size = config()
    largest = size.rows * 15 * 15 << 12
    passes = (1 << size.accumulator_width) // largest + 2
    one = {"rows": 1, "cols": 1, "in_rows": 1, "in_cols": 1, "shift": 3, "load_book": 1, "codebook": 15}
    words = [encode("LOAD", region=REGIONS.index("input"), beats=1, segments=1, post_full=1),
             encode("WEIGHTS", region=REGIONS.index("weights"), beats=size.tile_beats, segments=1, post_full=1),
             encode("PASS", **one, first=1, wait_weights=1, wait_activations=1)]
    words += [encode("PASS", **one, layer=i, keep=1) for i in range(1, passes)]
    words += [encode("DRAIN", acc_rows=1), encode("END")]
    host = await begin(dut)
    assert 32 * len(words) <= host.bases["weights"] - host.bases["program"]
    await host.write("PROGRAM_BYTES", 32 * len(words))
    await host.write("PROGRAM_LENGTH", len(words))
    host.put("program", b"".join(word.to_bytes(32, "little") for word in words))
    await host.start(IMAGES)
    host.put("input", b"\xff" * 16)
    host.put("weights", bytes(16 * size.tile_beats))
    await failed_run(host, "overflow", "compute")
