"""Whole programs on a machine in plain NumPy, their file, and what the compiler refuses."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from esbflow import instructions
from esbflow.compiler.cycles import CycleModel, count_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.program import instruction_array
from esbflow.compiler.store_tokens import POSTS_PER_LAYER, StoreTokens
from esbflow.compiler.tile import Span, Tiling
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images, random_weights
from esbflow.graph.validate import validate
from esbflow.instructions import decode
from esbflow.numbers import ESB, Signed, Unsigned
from esbflow.registers import REGIONS
from esbflow.runtime import layout
from esbflow.runtime.errors import ProgramError
from esbflow.runtime.program_file import load_program
from tests.compiler.machine import Machine, Stuck
from tests.compiler.programs import BOUNDS, NARROW, TALL, TESTED, compiled, four_bit_input, one_conv, shortcut
from tests.sw.graph_nodes import constants


# -- whole programs -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, number", [(name, k) for name in BOUNDS for k in range(4 if name in (*NARROW, *TALL) else 12)])
def test_programs_of_random_graphs_compute_the_graph_in_any_order_that_tokens_allow(name, number):
    random = np.random.default_rng((7, number, len(name)))
    graph, program = compiled(random, TESTED[name], **BOUNDS[name])
    images = random_images(random, graph, program.meta["batch"])
    expected = execute(graph, images)
    assert np.array_equal(Machine(program).run(images), expected)
    assert np.array_equal(Machine(program).run(images, order=random), expected)


def test_slices_share_a_batch_whatever_its_size():
    random = np.random.default_rng(11)
    config = replace(ENGINES["small8x16"], slices=4, activation_ports=4)
    for batch in (1, 4, 5, 11):
        graph, _ = compiled(random, config, **BOUNDS["small8x16"])
        program, images = compile_graph(graph, config, batch, packing={}), random_images(random, graph, batch)
        assert np.array_equal(Machine(program).run(images), execute(graph, images))
        one = compile_graph(graph, ENGINES["small8x16"], batch=-(-batch // 4), packing={})
        assert np.array_equal(program.instructions, one.instructions) and program.meta["batch"] == batch
        assert program.meta["regions"] == one.meta["regions"]


def test_a_program_without_one_of_its_waits_goes_wrong_or_stops_on_the_machine():
    """The machine is only worth something if it notices: each kind of wait is removed in turn."""
    random = np.random.default_rng(3)
    # More weight tiles than slots, and a second layer that reads all of the first at once, and again as its residual.
    first = one_conv(random_weights(random, (8, 3, 3, 3), "s4"), (3, 5, 5), Signed(4), padding=(1, 1))
    second = replace(first.nodes[1], name="second", inputs=("conv", "conv"), format=Signed(16),
                     weight=random_weights(random, (8, 8, 9, 1), "s4"), padding=(4, 0), requantizer=constants(8, n=3))
    first.nodes[1] = replace(first.nodes[1], requantizer=constants(8, s=8))
    graph = validate(ir.Graph("two", [*first.nodes, second]))
    program = compile_graph(graph, ENGINES["tiny4x4"])
    images = random_images(random, graph, 1)
    expected = execute(graph, images)
    for opcode, field in (("LOAD", "wait_free"), ("LOAD", "wait_stores"), ("WEIGHTS", "wait_free"),
                          ("PASS", "wait_weights"), ("PASS", "wait_activations"), ("PASS", "wait_accumulators")):
        low, width = instructions.layout(opcode)[field]
        words = [word & ~(((1 << width) - 1) << low) if word & 15 == instructions.OPCODES[opcode] else word
                 for word in program.words]
        broken = replace(program, instructions=instruction_array(words))
        assert words != program.words
        noticed = 0
        for seed in range(20):
            try:
                noticed += not np.array_equal(Machine(broken).run(images, order=np.random.default_rng(seed)), expected)
            except (AssertionError, Stuck):
                noticed += 1
            if noticed:
                break
        assert noticed, (opcode, field)


@pytest.mark.parametrize("number", range(15))
def test_every_wait_of_a_program_is_answered_by_an_earlier_post(number):
    random = np.random.default_rng((11, number))
    name = list(BOUNDS)[number % 4]
    _graph, program = compiled(random, ENGINES[name], **BOUNDS[name])
    found = count_cycles(program)  # raises where a wait has no post before it
    assert len(found.stamps) == len(program.meta["layers"]) and found.stamps == sorted(found.stamps)
    assert found.total > found.stamps[-1] and found.compute <= found.total


def test_a_program_that_waits_for_a_later_post_is_refused_by_the_cycle_model():
    words = [instructions.encode("LOAD", beats=1, segments=1, wait_free=1), instructions.encode("END")]
    with pytest.raises(ValueError, match=r"^the program waits for activations_free and nothing before it posts that$"):
        CycleModel(ENGINES["tiny4x4"], words).run()
    with pytest.raises(ValueError, match=r"^the program has no END instruction$"):
        CycleModel(ENGINES["tiny4x4"], []).run()


def test_rows_of_a_drain_without_a_token_wait_for_the_next_token():
    rows = tuple(Span(y, y + 1, y, y + 1, y, y + 1) for y in range(2 * POSTS_PER_LAYER + 1))  # five drains a token
    layer = SimpleNamespace(stacked=False, target="map", stripe=None)
    plan = SimpleNamespace(layer=layer, tiling=Tiling(rows, rows[:2], 1), weights=SimpleNamespace(groups=[[]]),
                           target=SimpleNamespace(images=1, height=len(rows)))
    source = SimpleNamespace(find=lambda plane: (0, plane), parts=(SimpleNamespace(region="workspace", height=len(rows)),))
    tokens, found = StoreTokens(ENGINES["tiny4x4"]), []
    for row in (0, 0, 1, 1, 2):  # both columns of a row; of row 2 one
        posts = tokens.drained(plan, 0, rows[row], 0)
        found.append((posts, *(tokens.needed(layer, ("map",), source, [0], 0, (y, y + 1), 0) for y in (0, 1, 2))))
    assert found == [(False, None, None, None)] * 4 + [(True, 1, 1, None)]
    assert (tokens.take(1), tokens.take(1)) == (1, 0)


def test_a_layer_of_many_tiles_and_images_keeps_its_tokens_few():
    random = np.random.default_rng(5)
    first = one_conv(random_weights(random, (20, 3, 1, 1), "s4"), (3, 40, 40), Unsigned(4))
    second = replace(first.nodes[1], name="second", inputs=("conv",), shape=(4, 40, 40), format=Signed(16),
                     weight=random_weights(random, (4, 20, 1, 1), "s4"), requantizer=constants(4))
    graph = validate(ir.Graph("many", [*first.nodes, second]))
    program = compile_graph(graph, ENGINES["tiny4x4"], batch=12)
    decoded = [instructions.decode(word) for word in program.words]
    posts = sum(fields["post_store"] for opcode, fields in decoded if opcode == "DRAIN" and fields["layer"] == 0)
    drains = sum(opcode == "DRAIN" and fields["layer"] == 0 for opcode, fields in decoded)
    assert drains > POSTS_PER_LAYER >= posts
    assert max(fields["wait_stores"] for opcode, fields in decoded if opcode == "LOAD") <= 1023
    images = random_images(random, graph, 12)
    machine = Machine(program)
    assert np.array_equal(machine.run(images, order=random), execute(graph, images))
    assert max(machine.highest.values()) <= 4095


def test_passes_in_any_order_give_the_same_sum():
    """The passes of one output group are sums: `first` on whichever comes first, and order does not matter."""
    random = np.random.default_rng(9)
    graph = one_conv(random_weights(random, (12, 20, 3, 3), "s8"), (20, 3, 3))
    program = compile_graph(graph, ENGINES["base16x16"], fold=False)
    images = random_images(random, graph, 1)
    expected = Machine(program).run(images)
    low = instructions.layout("PASS")["first"][0]
    keep = instructions.layout("PASS")["keep"][0]
    decoded = [instructions.decode(word) for word in program.words]
    slots = [i for i, (opcode, _) in enumerate(decoded) if opcode == "PASS"]
    tiles, current, books, held = {}, None, {}, [0, 0]
    for i in range(slots[-1] + 1):
        opcode, fields = decoded[i]
        if opcode == "WEIGHTS" and fields["destination"] == 0:
            current = fields["offset"]
        if opcode == "PASS":
            if fields["load_book"]:
                held[fields["book"]] = fields["codebook"]
            if not fields["keep"]:
                book = held[fields["book"]]
            tiles[i], books[i] = current, book
    assert len(slots) == 2 * 2 * 9 * 2, "two channel groups, two digits each of weights and activations, nine taps"
    for _ in range(3):
        machine = Machine(program)
        meta = program.meta["input"]
        codes = layout.encode_images(images, program.table)
        machine.memory["input"][:] = layout.pack(codes, 16, meta["digits"], meta["pitch"])
        for opcode, fields in decoded:
            if opcode == "LOAD":
                machine._load(fields)
            if opcode == "WEIGHTS" and fields["destination"] > 0:
                machine._weights(fields)
        for k, i in enumerate(random.permutation(slots)):
            size = machine.config.tile_beats * 16
            machine.slots[:size] = program.weights[16 * tiles[i]:16 * tiles[i] + size]
            word = (program.words[i] & ~(1 << low) & ~(1 << keep)) | (k == 0) << low
            machine._pass({**instructions.decode(word)[1], "slot": 0, "load_book": 1, "codebook": books[i]})
        machine._drain(next(fields for opcode, fields in decoded if opcode == "DRAIN"))
        output = program.meta["output"]
        values = layout.unpack(machine.memory["output"], tuple(output["shape"]), 1, 16, output["digits"],
                               output["pitch"], output["signed"])
        assert np.array_equal(values, expected)
    assert np.array_equal(expected, execute(graph, images))


def test_an_offset_of_b_beyond_40_bits_is_exact():
    """b with the array's and the lane's offsets is taken modulo the width of the sum."""
    graph = ir.Graph("g", [
        one_conv(np.ones((1, 1, 1, 1)), (1, 2, 2)).nodes[0],
        replace(one_conv(np.full((1, 1, 1, 1), -100), (1, 2, 2)).nodes[1],
                requantizer=constants(1, m=2047, b=2**39 - 1, s=36))])
    images = random_images(np.random.default_rng(2), graph, 1)
    assert np.array_equal(Machine(compile_graph(graph, ENGINES["tiny4x4"])).run(images), execute(graph, images))


# -- the file -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def program():
    return compiled(np.random.default_rng(1), ENGINES["small8x16"], channels=10, size=8)[1]


def test_a_saved_program_reads_back_the_same(program, tmp_path):
    loaded = load_program(program.save(tmp_path / "folder" / "net.prog"))
    assert loaded.meta == json.loads(json.dumps(program.meta)) and loaded.config == program.config
    for name in ("instructions", "weights", "table"):
        one, two = getattr(program, name), getattr(loaded, name)
        assert np.array_equal(one, two) and one.dtype == two.dtype
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["net.prog"]


def test_a_program_cut_at_any_place_is_refused(program, tmp_path):
    content = program.save(tmp_path / "net.prog").read_bytes()
    path = tmp_path / "cut.prog"
    for length in (0, 1, 4, 30, *range(50, len(content), len(content) // 40), len(content) - 23, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ProgramError, match=r"^.*cut\.prog is not a whole program file \(.*\); compile the "
                                               r"network again$"):
            load_program(path)


def test_compiling_twice_gives_the_same_bytes(tmp_path):
    graph = random_graph(np.random.default_rng(2), channels=12, size=8)
    one, two = (compile_graph(graph, ENGINES["base16x16"], 2) for _ in range(2))
    assert one.meta == two.meta and np.array_equal(one.instructions, two.instructions)
    assert np.array_equal(one.weights, two.weights)


# -- refusals -----------------------------------------------------------------------------------------------------
WIDE = EngineConfig("narrow", rows=4, cols=4, accumulator_width=16)


class Softmax(ir.Node):
    """An operator that is not the engine's."""


def with_last(node):
    return ir.Graph("g", [*one_conv(np.ones((4, 2, 3, 3)), (2, 8, 8), Unsigned(4)).nodes, node])


REFUSED = {
    "operator": (lambda: compile_graph(with_last(Softmax("soft", ("conv",), (4, 6, 6), Unsigned(4), 1.0)), ENGINES["tiny4x4"]),
                 r"layer soft: the engine does not run Softmax; compile it with `esbflow compile` or esbflow.split, where the host runs it"),
    "repeated 65 times": (lambda: compile_graph(with_last(ir.Upsample("up", ("conv",), (4, 6, 390), Unsigned(4), 1.0,
                                                                      factor=(1, 65))), ENGINES["tiny4x4"]),
                          r"layer up: repeating a column 65 times does not fit the engine's 64 accumulators; use a larger "
                          r"engine, or several smaller factors"),
    "wide part": (lambda: compile_graph(ir.Graph("g", [
        *one_conv(np.ones((4, 2, 3, 3)), (2, 8, 8), Signed(16)).nodes,
        ir.Concat("both", ("conv", "conv"), (8, 6, 6), Signed(16), 1.0)]), ENGINES["tiny4x4"]),
        r"layer conv: the engine reads activations of at most 8 bits, not s16"),
    "accumulator": (lambda: compile_graph(one_conv(np.full((1, 4, 1, 1), 127), (4, 2, 2)), WIDE),
                    r"layer conv: its accumulator may need \d+ bits and engine narrow has 16; use fewer bits or channels, "
                    r"or an engine with wider accumulators"),
    "batch 0": (lambda: compile_graph(one_conv(np.ones((1, 1, 1, 1)), (1, 2, 2)), ENGINES["tiny4x4"], 0),
                r"batch must be in 1..256, not 0"),
    "batch 257": (lambda: compile_graph(one_conv(np.ones((1, 1, 1, 1)), (1, 2, 2)), ENGINES["tiny4x4"], 257),
                  r"batch must be in 1..256, not 257"),
    "window": (lambda: compile_graph(one_conv(np.ones((4, 8, 11, 11)), (8, 40, 40), dilation=(3, 3)), ENGINES["tiny4x4"]),
               r"layer conv: the smallest tile takes \d+ beats of activations, and engine tiny4x4 has 64; use an engine with "
               r"activation_beats of at least 256, or a smaller kernel"),
    "digits": (lambda: compile_graph(one_conv(np.full((1, 4, 1, 1), 30000), (4, 2, 2)), ENGINES["base16x16"]),
               r"layer conv: weights of 4 digits times activations of 2 need larger shifts than engine base16x16 has; use "
               r"fewer weight bits"),
    "no layer": (lambda: compile_graph(ir.Graph("empty", one_conv(np.ones((1, 1, 1, 1)), (1, 2, 2)).nodes[:1]),
                                       ENGINES["tiny4x4"]),
                 r"graph empty has no layer after its input"),
    "wide tensor": (lambda: compile_graph(ir.Graph("g", [
        *one_conv(np.ones((4, 2, 3, 3)), (2, 8, 8), Signed(16)).nodes,
        ir.Requantize("last", ("conv",), (4, 6, 6), Signed(8), 1.0, requantizer=constants(4))]), ENGINES["tiny4x4"]),
        r"layer conv: the engine reads activations of at most 8 bits, not s16"),
    "esb": (lambda: compile_graph(one_conv(np.ones((1, 1, 1, 1)), (1, 2, 2), ESB(6, 1)), ENGINES["tiny4x4"]),
            r"layer conv: the engine requantizes to ESB levels up to 255, esb6.1 reaches \d+; use fewer exponent bits"),
    "pool": (lambda: compile_graph(ir.Graph("g", [
        *one_conv(np.ones((1, 1, 1, 1)), (1, 20, 20), Signed(8)).nodes,
        ir.MaxPool2d("pool", ("conv",), (1, 5, 5), Signed(8), 1.0, kernel=(16, 16), stride=(1, 1))]), ENGINES["tiny4x4"]),
        r"layer pool: the engine pools windows and strides up to 15"),
    "stride": (lambda: compile_graph(one_conv(np.ones((1, 1, 1, 1)), (1, 200, 200), stride=(64, 64)), ENGINES["tiny4x4"]),
               r"layer conv: the engine's strides reach 63, not 64"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_the_engine_is_refused_by_layer(kind):
    make, message = REFUSED[kind]
    with pytest.raises(CompileError, match=f"^{message}$"):
        make()


def test_an_accumulator_that_just_fits_is_exact_at_its_ends():
    # Whatever the order of passes: the sum of magnitudes times the largest activation digit fits 16 bits.
    graph = one_conv(np.array([7, -7, 7, -7]).reshape(1, 4, 1, 1), (4, 2, 2))
    images = np.zeros((1, 4, 2, 2), np.uint8)
    images[:, 0::2] = 255
    for picture in (images, 255 - images):
        assert np.array_equal(Machine(compile_graph(graph, WIDE)).run(picture), execute(graph, picture))


@pytest.mark.parametrize("kernel, stride, loads", [((1, 1), (2, 2), 1 / 2), ((1, 3), (3, 1), 1 / 3), ((3, 1), (2, 2), 1)])
def test_windows_of_one_row_load_only_the_rows_they_read(kernel, stride, loads):
    """As in the shortcuts of ResNets."""
    random, config = np.random.default_rng(9), ENGINES["small8x16"]
    graph = one_conv(random_weights(random, (9, 12, *kernel), "s4"), (12, 18, 30), stride=stride)
    program = compile_graph(graph, config, 2, fold=False)
    beats = sum(fields["beats"] * fields["segments"] for opcode, fields in map(decode, program.words)
                if opcode == "LOAD" and fields["region"] == REGIONS.index("input"))
    assert beats * 16 == pytest.approx(program.meta["regions"]["input"] * loads, rel=0.5 if loads == 1 else 0.01)  # tiles share rows of 3
    images = random_images(random, graph, 2)
    assert np.array_equal(Machine(program).run(images, random), execute(graph, images))


SHORTCUTS = {  # of columns 1 in: left out where words are whole beats, that pays, and the queue holds a tile's rows
    "whole": (EngineConfig("wide64x4", rows=64, cols=4), (2, 2), 2),
    "in steps of four": (EngineConfig("wide32x4", rows=32, cols=4), (4, 4), 4),
    "no time is saved": (EngineConfig("wide32x4", rows=32, cols=4), (2, 2), 1),
    "words share beats": (ENGINES["base16x16"], (4, 4), 1),
    "a port for two slices": (EngineConfig("shared32x4", rows=32, cols=4, slices=2), (3, 3), 3),
    "no time, for two slices": (EngineConfig("shared32x4", rows=32, cols=4, slices=2), (2, 2), 1),
    "a short queue": (EngineConfig("wide64x16", rows=64, cols=16, accumulator_depth=1024, queue_depth=2), (2, 2), 1),
}


@pytest.mark.parametrize("case", SHORTCUTS)
def test_windows_of_one_column_load_only_the_columns_they_read(case):
    config, stride, share = SHORTCUTS[case]
    random = np.random.default_rng(10)
    graph = shortcut(random, stride)
    program = compile_graph(graph, config, config.slices, packing={})
    own = [fields for opcode, fields in map(decode, program.words)
           if opcode == "LOAD" and fields["layer"] == 1 and fields["region"] == REGIONS.index("input")]
    _, height, width = graph.input.shape
    (source,) = graph.input.shape[:1]
    words = -(-source // config.rows) * -(-height // stride[0]) * (-(-width // stride[1]) if share > 1 else width)
    assert sum(fields["beats"] * fields["segments"] for fields in own) == pytest.approx(
        words * config.beats_per_word / config.words_per_beat, rel=0 if config.words_per_beat == 1 else 0.1)
    images = random_images(random, graph, config.slices)
    assert np.array_equal(Machine(program).run(images, random), execute(graph, images))


def test_output_groups_with_a_residual_share_the_load_of_their_input():
    random = np.random.default_rng(11)
    nodes = [four_bit_input((1, 6, 6))]
    for name, inputs in (("a", ("input",)), ("b", ("a",)), ("c", ("a", "b"))):
        weight = random_weights(random, (60, 1 if name == "a" else 60, 1, 1), "s4")
        nodes.append(ir.Conv2d(name, inputs, (60, 6, 6), Unsigned(4), 1.0, weight=weight, weight_format=Signed(8),
                               weight_scale=np.ones(60), requantizer=constants(60, s=6, n=64 if name == "c" else 0)))
    graph = validate(ir.Graph("groups", nodes))
    program, loads = compile_graph(graph, ENGINES["small8x16"], packing={}), Counter()
    for opcode, fields in map(decode, program.words):
        if opcode == "LOAD" and fields["layer"] == 2:
            loads["residual" if fields["destination"] >= 2 else "input"] += fields["beats"] * fields["segments"]
    map_beats = 8 * 6 * 2  # 60 channels in 8 words of 8, rows of 6 words in 2 beats
    assert loads == {"input": map_beats, "residual": map_beats}
    assert count_cycles(program).total  # every wait is answered by an earlier post
    images = random_images(random, graph, 1)
    for number in range(4):
        assert np.array_equal(Machine(program).run(images, np.random.default_rng(number)), execute(graph, images))


# -- narrow digits ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("activation_bits", [1, 2, 3, 4, 6, 8])
def test_weights_and_activations_of_1_to_8_bits_run_on_narrow_engines_by_passes(name, activation_bits):
    random, config = np.random.default_rng(activation_bits), NARROW[name]
    for weight_bits in range(1, 9):
        low, high = (-(1 << weight_bits - 1), (1 << weight_bits - 1) - 1) if weight_bits > 1 else (-1, 1)
        weight = random.integers(low, high + 1, (5, 3, 2, 2))
        weight.flat[:2] = low, high
        graph = one_conv(weight, (3, 4, 5), Signed(32))
        graph.nodes[0] = replace(graph.nodes[0], format=Unsigned(activation_bits),
                                 table=np.tile(np.arange(256) & ((1 << activation_bits) - 1), (3, 1)))
        program = compile_graph(validate(graph), config)
        images = random_images(random, graph, 1)
        assert np.array_equal(Machine(program).run(images), execute(graph, images)), weight_bits


def test_a_program_for_another_digit_is_for_another_engine():
    config = ENGINES["base16x16"]
    assert replace(config, digit_bits=2).hash != config.hash
    with pytest.raises(ValueError, match=r"^digit_bits must be 2 or 4, not 3$"):
        replace(config, digit_bits=3)


def pool_of_a_map(size):
    """A global average pool, as the exporters write it: a convolution of ones, channel by channel."""
    return one_conv(np.ones((4, 1, size, size)), (4, size, size), groups=4)


@pytest.mark.parametrize("size, wanted", [(56, 2048), (112, 8192)])
def test_an_engine_that_is_advised_for_a_large_window_is_large_enough(size, wanted):
    config = ENGINES["base16x16"]
    with pytest.raises(CompileError, match=rf"use an engine with activation_beats of at least {wanted}, or a smaller kernel$"):
        compile_graph(pool_of_a_map(size), config)
    compile_graph(pool_of_a_map(size), replace(config, activation_beats=wanted))
    with pytest.raises(CompileError, match=rf"activation_beats of at least {wanted}"):
        compile_graph(pool_of_a_map(size), replace(config, activation_beats=wanted // 2))


def test_no_larger_engine_is_advised_where_none_is_large_enough():
    with pytest.raises(CompileError, match=r"takes 20,000 beats of activations, and engine base16x16 has 1,024; no engine of 16 "
                                           r"rows has enough: use a smaller kernel, or try other rows$"):
        compile_graph(pool_of_a_map(200), ENGINES["base16x16"])
