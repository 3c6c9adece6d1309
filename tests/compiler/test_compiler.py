"""The compiler: exact splitting, layout, tiles and tokens, and whole programs on a machine in plain NumPy."""

import dataclasses
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow import engine_config, instructions
from esbflow.compiler import pipeline
from esbflow.compiler.cycles import CycleModel, count_cycles
from esbflow.compiler.digits import ones_complement_loss, split_weights
from esbflow.compiler.emit import POSTS_PER_LAYER
from esbflow.compiler.errors import CompileError
from esbflow.compiler.fold import fold_input
from esbflow.compiler.layout import tensor_layout
from esbflow.compiler.lower import lower
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.tile import window_words
from esbflow.engine_config import ENGINES, EngineConfig, engine
from esbflow.graph import ir
from esbflow.graph.execute import convolve, execute
from esbflow.graph.random import random_graph, random_images, random_weights
from esbflow.graph.validate import validate
from esbflow.numbers import ESB, Signed, Unsigned
from esbflow.runtime import layout
from esbflow.runtime.errors import ProgramError
from esbflow.runtime.program_file import load_program
from tests.compiler.machine import Machine, Stuck

seeds = st.integers(0, 2**32 - 1)
BOUNDS = {"tiny4x4": {"channels": 10, "size": 10}, "small8x16": {"channels": 24, "size": 12},
          "base16x16": {"channels": 40, "size": 14}, "large64x64": {"channels": 80, "size": 10}}


def constants(channels, m=1, b=0, s=0, n=0):
    return ir.Requantizer(**{name: np.full(channels, value, dtype=np.int64)
                             for name, value in {"m": m, "n": n, "b": b, "s": s}.items()})


def one_conv(weight, in_shape, form=None, **fields):
    """A graph of one convolution."""
    weight = np.asarray(weight, dtype=np.int64)
    fields = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **fields}
    out = tuple((size + 2 * p - (k - 1) * d - 1) // s + 1 for size, k, s, p, d in zip(
        in_shape[1:], weight.shape[2:], fields["stride"], fields["padding"], fields["dilation"], strict=True))
    table = np.tile(np.arange(256) - 128, (in_shape[0], 1))
    return validate(ir.Graph("one", [
        ir.Input("input", (), in_shape, Signed(8), 1.0, table=table),
        ir.Conv2d("conv", ("input",), (len(weight), *out), form or Signed(32), 1.0, weight=weight,
                  weight_format=Signed(8), weight_scale=np.ones(len(weight)), requantizer=constants(len(weight)),
                  **fields)]))


def compiled(random, config, **bounds):
    """A random graph that fits the engine, and its program."""
    while True:
        graph = random_graph(random, **bounds)
        try:
            return graph, compile_graph(graph, config, int(random.integers(1, 4)), fold=bool(random.integers(2)))
        except CompileError:
            continue


def plans_of(graph, config, batch=1, fold=True):
    """The layers as they come to emission."""
    kept, original = [], pipeline.emit
    try:
        pipeline.emit = lambda config, plans: kept.extend(plans) or original(config, plans)
        compile_graph(graph, config, batch, fold)
    finally:
        pipeline.emit = original
    return kept


# -- whole programs -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("number", range(12))
def test_programs_of_random_graphs_compute_the_graph_in_any_order_that_tokens_allow(name, number):
    random = np.random.default_rng((7, number, len(name)))
    graph, program = compiled(random, ENGINES[name], **BOUNDS[name])
    images = random_images(random, graph, program.meta["batch"])
    expected = execute(graph, images)
    assert np.array_equal(Machine(program).run(images), expected)
    assert np.array_equal(Machine(program).run(images, order=random), expected)


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
        broken = replace(program, instructions=pipeline.instruction_array(words))
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
    graph, program = compiled(random, ENGINES[name], **BOUNDS[name])
    found = count_cycles(program)  # raises where a wait has no post before it
    assert len(found.stamps) == len(program.meta["layers"]) and found.stamps == sorted(found.stamps)
    assert found.total > found.stamps[-1] and found.compute <= found.total


def test_a_program_that_waits_for_a_later_post_is_refused_by_the_cycle_model():
    words = [instructions.encode("LOAD", beats=1, segments=1, wait_free=1), instructions.encode("END")]
    with pytest.raises(ValueError, match=r"^the program waits for activations_free and nothing before it posts that$"):
        CycleModel(ENGINES["tiny4x4"], words).run()
    with pytest.raises(ValueError, match=r"^the program has no END instruction$"):
        CycleModel(ENGINES["tiny4x4"], []).run()


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
    tiles, current = {}, None
    for i in range(slots[-1] + 1):
        opcode, fields = decoded[i]
        if opcode == "WEIGHTS" and fields["destination"] == 0:
            current = fields["offset"]
        if opcode == "PASS":
            tiles[i] = current
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
            machine._pass({**instructions.decode(word)[1], "slot": 0})
        machine._drain(next(fields for opcode, fields in decoded if opcode == "DRAIN"))
        output = program.meta["output"]
        values = layout.unpack(machine.memory["output"], tuple(output["shape"]), 1, 16, output["digits"],
                               output["pitch"], output["signed"])
        assert np.array_equal(values, expected)
    assert np.array_equal(expected, execute(graph, images))


# -- weights to codes ---------------------------------------------------------------------------------------------
@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=40), st.integers(1, 16), st.booleans())
def test_split_weights_add_up_exactly(values, bits, with_zero):
    weight = np.array([v >> (16 - bits) for v in values])
    digits = split_weights(weight, with_zero=with_zero)
    assert np.array_equal(sum(d.values << (4 * d.position) for d in digits), weight)
    for digit in digits:
        assert np.abs(digit.book).max() <= 15 and len(digit.book) == 16 and digit.codes.max() < 16
        assert digit.book[digit.padding_code] == 0 or not with_zero
        assert digit.book[digit.padding_code] >= 0


@pytest.mark.parametrize("values, count", [
    (ESB(4, 1).levels, 1), (range(-8, 8), 1), (range(-15, 16, 2), 1), (range(-7, 8), 1), ([0], 1), ([-15, 15], 1),
    (range(-15, 16), 2), ([-128, 127], 2), ([16], 2), (ESB(6, 3).levels, 2), ([-129], 3), ([2047, -2048], 3),
    ([-32768, 32767], 4)])
def test_weights_take_as_few_digits_as_their_range_allows(values, count):
    weight = np.array(list(values))
    digits = split_weights(weight)
    assert len(digits) == count and np.array_equal(sum(d.values << (4 * d.position) for d in digits), weight)


def test_weights_wider_than_16_bits_are_refused():
    with pytest.raises(CompileError, match=r"^layer fc: weights 0..32768 need more than 16 bits$"):
        split_weights(np.array([0, 32768]), "layer fc")


def test_codebook_field_holds_sign_and_magnitude_of_each_entry():
    (digit,) = split_weights(np.array([-12, 0, 7]))
    # Entry 0 is -12 (sign 1, magnitude 1100), entry 1 is 0, entry 2 is 7.
    assert digit.codebook == 0b11100 | 0b00000 << 5 | 0b00111 << 10
    assert digit.codes.tolist() == [0, 1, 2]


@given(seeds, st.sampled_from(["esb4.1", "s8", "half", "s6"]), st.sampled_from([(0, 16), (-8, 8)]))
def test_ones_complement_loss_is_what_the_array_lacks(seed, kind, activations):
    """The array adds weight * a for positive weights and |weight| * ~a for negative ones."""
    random = np.random.default_rng(seed)
    weight = random_weights(random, (3, 7), kind)
    a = random.integers(*activations, 7)
    array = lack = 0
    for digit in split_weights(weight):
        values = digit.values
        one = np.where(values < 0, -values * ~a, values * a).sum(axis=1)
        array, lack = array + (one << (4 * digit.position)), lack + ones_complement_loss(digit).sum(axis=1)
    assert np.array_equal(array + lack, weight @ a)


# -- fold ---------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from([4, 8, 16, 64]))
def test_a_folded_first_layer_computes_the_same(seed, rows):
    random = np.random.default_rng(seed)
    channels, (ky, kx) = int(random.integers(1, 5)), random.integers(1, 6, 2)
    fields = {"stride": tuple(random.integers(1, 4, 2)), "padding": tuple(random.integers(0, 3, 2)),
              "dilation": tuple(random.integers(1, 3, 2))}
    size = [int(random.integers(max(1, (k - 1) * d + 1 - 2 * p), 14))
            for k, d, p in zip((ky, kx), fields["dilation"], fields["padding"], strict=True)]
    graph = one_conv(random_weights(random, (5, channels, ky, kx), "s8"), (channels, *size), **fields)
    (original,) = lower(graph)
    fold, folded = fold_input(original, rows)
    codes = layout.encode_images(random_images(random, graph, 2), graph.input.table)
    expected = convolve(codes, original.weight, original.stride, original.padding, original.dilation, 1)
    if fold is None:
        assert folded is original
        return
    meta = {"fold": json.loads(json.dumps(fold.to_meta(), default=int)), "height": folded.in_shape[1],
            "width": folded.in_shape[2]}
    wide = layout.fold_windows(codes, meta)
    assert wide.shape[1:] == tuple(folded.in_shape)
    assert np.array_equal(convolve(wide, folded.weight, folded.stride, folded.padding, folded.dilation, 1), expected)
    # It is worth it: fewer passes, or as many over a smaller map.
    passes = [np.prod(layer.kernel) * -(-layer.in_shape[0] // rows) for layer in (original, folded)]
    assert passes[1] <= passes[0]


def test_a_grey_image_folds_its_whole_window_on_a_wide_array():
    (layer,) = lower(one_conv(np.ones((20, 1, 5, 5)), (1, 28, 28)))
    fold, folded = fold_input(layer, 16)
    assert fold.rows and folded.in_shape == (25, 24, 24) and folded.kernel == (1, 1)
    fold, folded = fold_input(layer, 4)
    assert not fold.rows and folded.in_shape == (5, 28, 24) and folded.kernel == (5, 1)


# -- layout, tiles, workspace -------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(list(ENGINES)), st.sampled_from([Unsigned(4), Signed(4), Signed(8), Unsigned(8),
                                                               Signed(16), Signed(32), ESB(4, 1)]))
def test_packed_tensors_read_back_and_lie_where_the_layout_says(seed, name, form):
    random, config = np.random.default_rng(seed), ENGINES[name]
    shape, images = tuple(int(v) for v in random.integers(1, [150, 8, 12])), int(random.integers(1, 4))
    values = random.integers(max(form.min, -(2**31)), form.max + 1, (images, *shape))
    place = tensor_layout(config, "output", shape, form, images)
    packed = layout.pack(values, config.rows, place.digits, place.pitch)
    assert packed.size == place.bytes and place.bytes % 16 == 0
    assert np.array_equal(layout.unpack(packed, shape, images, config.rows, place.digits, place.pitch, form.signed), values)
    # One value by hand: channel c of image i at (y, x), digit d.
    c, i, y, x, d = (int(random.integers(n)) for n in (shape[0], images, *shape[1:], place.digits))
    first = x // place.words_per_beat * place.words_per_beat
    byte = 16 * place.beat(c // config.rows * place.digits + d, i, y, first)
    byte += (x - first) * config.rows // 2 + c % config.rows // 2
    assert packed[byte] >> (4 * (c % 2)) & 15 == values[i, c, y, x] >> (4 * d) & 15


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("number", range(10))
def test_tiles_cover_every_output_once_and_fit_the_buffers(name, number):
    random, config = np.random.default_rng((13, number)), ENGINES[name]
    larger = {"channels": 2 * BOUNDS[name]["channels"], "size": 40}
    while True:
        graph = random_graph(random, layers=2, **larger)
        try:
            plans = plans_of(graph, config, 2)
            break
        except CompileError:
            continue
    for plan in plans:
        layer, target, tiling = plan.layer, plan.target, plan.tiling
        images = target.images if layer.stacked else 1
        for spans, size in ((tiling.rows, target.height * images), (tiling.cols, target.width)):
            assert [y for span in spans for y in range(span.out0, span.out1)] == list(range(size))
        whole = len(tiling.cols) == 1
        for row, col in itertools.product(tiling.rows, tiling.cols):
            assert (row.conv1 - row.conv0) * (col.conv1 - col.conv0) <= config.accumulator_depth
            first, window = window_words(layer, col, config.words_per_beat, plan.source.pitch, whole)
            beats = (row.in1 - row.in0) * window // config.words_per_beat * config.beats_per_word
            assert tiling.planes_at_once >= 1 and beats * tiling.planes_at_once <= config.activation_beats
            assert first <= col.in0 and col.in1 <= first + window
            for axis, span in enumerate((row, col)):
                # Every input that a convolution output of the tile reads is in the window, or is padding.
                size = layer.in_shape[1 + axis] * (images if axis == 0 else 1)
                for out, tap in itertools.product(range(span.conv0, span.conv1), range(layer.kernel[axis])):
                    at = out * layer.stride[axis] + tap * layer.dilation[axis] - layer.padding[axis]
                    assert span.in0 <= at < span.in1 or not 0 <= at < size
                # And every convolution output that a pool window of the tile reads.
                for out, tap in itertools.product(range(span.out0, span.out1), range(layer.pool.kernel[axis])):
                    at = out * layer.pool.stride[axis] + tap - layer.pool.padding[axis]
                    assert span.conv0 <= at < span.conv1 or not 0 <= at < layer.conv_shape[1 + axis] * images


@pytest.mark.parametrize("number", range(20))
def test_tensors_that_are_needed_at_the_same_time_never_share_memory(number):
    random = np.random.default_rng((17, number))
    while True:
        graph = random_graph(random, layers=8, channels=12, size=8)
        try:
            plans = plans_of(graph, ENGINES["small8x16"], 2)
            break
        except CompileError:
            continue
    made = {plan.layer.target: plan for plan in plans}
    last = {name: max([plan.number for plan in plans if name in (plan.layer.source, plan.layer.residual)],
                      default=made[name].number) for name in made}
    stored = [name for name in made if made[name].target.region == "workspace"]
    for a, b in itertools.combinations(stored, 2):
        lives = made[a].number <= last[b] and made[b].number <= last[a]
        one, two = made[a].target, made[b].target
        apart = one.offset + one.beats <= two.offset or two.offset + two.beats <= one.offset
        assert apart or not lives, (a, b)


def test_workspace_is_used_again():
    layers = [one_conv(np.ones((8, 8, 1, 1)), (8, 8, 8), Signed(8)).nodes[0]]
    for k in range(6):
        node = one_conv(np.eye(8).reshape(8, 8, 1, 1), (8, 8, 8), Signed(8)).nodes[1]
        layers.append(replace(node, name=f"conv{k}", inputs=(layers[-1].name,)))
    graph = validate(ir.Graph("chain", layers))
    tensor = tensor_layout(ENGINES["base16x16"], "workspace", (8, 8, 8), Signed(8), 1).bytes
    assert compile_graph(graph, ENGINES["base16x16"], 1).meta["regions"]["workspace"] == 2 * tensor


def test_a_pool_behind_a_convolution_costs_no_layer_of_its_own():
    conv = one_conv(np.ones((4, 2, 3, 3)), (2, 8, 8), Unsigned(4))
    pool = ir.MaxPool2d("pool", ("conv",), (4, 3, 3), Unsigned(4), 1.0)
    last = replace(one_conv(np.ones((4, 4, 1, 1)), (4, 3, 3)).nodes[1], name="last", inputs=("pool",))
    graph = validate(ir.Graph("pooled", [*conv.nodes, pool, last]))
    assert [(layer.name, layer.target, layer.out_shape) for layer in lower(graph)] == [
        ("conv", "pool", (4, 3, 3)), ("last", "last", (4, 3, 3))]
    # Not if someone else reads the map before the pool.
    other = ir.Requantize("other", ("conv",), (4, 6, 6), Unsigned(4), 1.0, requantizer=constants(4))
    graph = validate(ir.Graph("read twice", [*conv.nodes, pool, other]))
    assert [layer.name for layer in lower(graph)] == ["conv", "pool", "other"]


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
def with_last(node):
    graph = one_conv(np.ones((4, 2, 3, 3)), (2, 8, 8), Unsigned(4))
    return validate(ir.Graph("g", [*graph.nodes, node]))


WIDE = EngineConfig("narrow", rows=4, cols=4, accumulator_width=16)
REFUSED = {
    "upsample": (lambda: compile_graph(with_last(ir.Upsample("up", ("conv",), (4, 12, 12), Unsigned(4), 1.0)),
                                       ENGINES["tiny4x4"]),
                 r"layer up: the engine does not run Upsample; run it on the host, or express it by convolutions"),
    "concat": (lambda: compile_graph(with_last(ir.Concat("cat", ("conv", "conv"), (8, 6, 6), Unsigned(4), 1.0)),
                                     ENGINES["tiny4x4"]),
               r"layer cat: the engine does not run Concat; run it on the host, or express it by convolutions"),
    "accumulator": (lambda: compile_graph(one_conv(np.full((1, 4, 1, 1), 127), (4, 2, 2)), WIDE),
                    r"layer conv: its accumulator may need \d+ bits and engine narrow has 16; use fewer bits or channels, "
                    r"or an engine with wider accumulators"),
    "batch 0": (lambda: compile_graph(one_conv(np.ones((1, 1, 1, 1)), (1, 2, 2)), ENGINES["tiny4x4"], 0),
                r"batch must be in 1..256, not 0"),
    "batch 257": (lambda: compile_graph(one_conv(np.ones((1, 1, 1, 1)), (1, 2, 2)), ENGINES["tiny4x4"], 257),
                  r"batch must be in 1..256, not 257"),
    "window": (lambda: compile_graph(one_conv(np.ones((4, 8, 11, 11)), (8, 40, 40), dilation=(3, 3)), ENGINES["tiny4x4"]),
               r"layer conv: the window of one row of outputs does not fit the engine's buffers \(64 beats a half, 64 "
               r"accumulators\); use a larger engine or a smaller kernel"),
    "digits": (lambda: compile_graph(one_conv(np.full((1, 4, 1, 1), 30000), (4, 2, 2)), ENGINES["base16x16"]),
               r"layer conv: weights of 4 digits times activations of 2 need more than the engine's 3 digit positions; use "
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
    "offset": (lambda: compile_graph(ir.Graph("g", [
        one_conv(np.ones((1, 1, 1, 1)), (1, 2, 2)).nodes[0],
        replace(one_conv(np.full((1, 1, 1, 1), -100), (1, 2, 2)).nodes[1],
                requantizer=constants(1, m=2047, b=2**39 - 1))]), ENGINES["tiny4x4"]),
        r"layer conv: a requantizer offset needs more than 40 bits"),
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


# -- instructions -------------------------------------------------------------------------------------------------
@st.composite
def any_instruction(draw):
    opcode = draw(st.sampled_from(list(instructions.OPCODES)))
    values = {}
    for name, width in instructions.FIELDS[opcode][1:]:
        low = -(1 << width - 1) if instructions.is_signed(opcode, name) else 0
        values[name] = draw(st.integers(low, low + (1 << width) - 1))
    return opcode, values


@given(any_instruction())
def test_instructions_decode_to_what_was_encoded(instruction):
    opcode, values = instruction
    word = instructions.encode(opcode, **values)
    name, fields = instructions.decode(word)
    assert 0 <= word < 1 << 256 and name == opcode
    assert {key: fields[key] for key in values} == values and fields["opcode"] == instructions.OPCODES[opcode]


@pytest.mark.parametrize("opcode, name", [(opcode, name) for opcode, fields in instructions.FIELDS.items()
                                          for name, _ in fields[1:]])
def test_a_value_beyond_its_field_is_refused(opcode, name):
    width = dict(instructions.FIELDS[opcode])[name]
    signed = instructions.is_signed(opcode, name)
    for value in (1 << width - signed, -(1 << width - 1) - 1 if signed else -1):
        with pytest.raises(ValueError, match=f"^{opcode}: {name} = {value} does not fit in {width} bits$"):
            instructions.encode(opcode, **{name: value})


@pytest.mark.parametrize("number", [0, 7, 15])
def test_an_unknown_opcode_is_refused(number):
    with pytest.raises(ValueError, match=f"^no instruction has opcode {number}$"):
        instructions.decode(number)


# -- engine configurations ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields, error, message", [
    ({"rows": 6}, ValueError, r"rows must be a power of two in 4..128, not 6"),
    ({"rows": 256, "cols": 256}, ValueError, r"rows must be a power of two in 4..128, not 256"),
    ({"rows": 16, "cols": 8}, ValueError, r"cols must be a power of two in 16..128, not 8"),
    ({"rows": 8.0}, TypeError, r"rows must be an integer, not 8.0"),
    ({"rows": True}, TypeError, r"rows must be an integer, not True"),
    ({"requantize_lanes": 16}, ValueError, r"requantize_lanes must be a power of two in 1..8, not 16"),
    ({"accumulator_width": 33}, ValueError, r"accumulator_width must be in 16..32, not 33"),
    ({"accumulator_width": 15}, ValueError, r"accumulator_width must be in 16..32, not 15"),
    ({"accumulator_depth": 2048}, ValueError, r"accumulator_depth must be a power of two in 16..1024, not 2048"),
    ({"activation_beats": 100}, ValueError, r"activation_beats must be a power of two in 16..16384, not 100"),
    ({"residual_beats": 8}, ValueError, r"residual_beats must be a power of two in 16..16384, not 8"),
    ({"weight_slots": 1}, ValueError, r"weight_slots must be a power of two in 2..128, not 1"),
    ({"weight_path_beats": 64}, ValueError, r"weight_path_beats must be a power of two in 1..2, not 64"),
    ({"max_burst": 2}, ValueError, r"max_burst must be a power of two in 4..64, not 2"),
    ({"queue_depth": 64}, ValueError, r"queue_depth must be a power of two in 2..32, not 64"),
    ({"clock_mhz": 0}, ValueError, r"clock_mhz must be in 1..1000, not 0"),
])
def test_an_engine_of_impossible_size_is_refused(fields, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        EngineConfig(**{"name": "x", "rows": 8, "cols": 8, **fields})


def test_the_hash_depends_on_every_size_and_on_neither_name_nor_clock():
    base = ENGINES["base16x16"]
    assert replace(base, name="other", clock_mhz=100).hash == base.hash
    other = {"rows": 8, "cols": 32, "accumulator_width": 30, "weight_path_beats": 2}
    for field in dataclasses.fields(base):
        if field.name not in ("name", "clock_mhz"):
            value = other.get(field.name, getattr(base, field.name) // 2)
            assert replace(base, **{field.name: value}).hash != base.hash, field.name


@pytest.mark.parametrize("name", ENGINES)
def test_configurations_survive_json(name, tmp_path):
    config = ENGINES[name]
    assert EngineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config == engine(name)
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({"config": config.to_dict()}))
    assert engine(str(path)) == config


def test_unknown_engines_and_damaged_descriptions_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^no engine named 'huge'; known: tiny4x4, small8x16, base16x16, large64x64$"):
        engine("huge")
    with pytest.raises(ValueError, match=r"^unknown engine parameter 'colour'; known: accumulator_depth, .*$"):
        EngineConfig.from_dict({**ENGINES["tiny4x4"].to_dict(), "colour": 3})
    path = tmp_path / "engine.json"
    for content in ("", "{", "{}", "[]", '{"config": 3}', '{"config": {"name": "x"}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"engine\.json is not an engine\.json as `esbflow rtl` writes it: "):
            engine(str(path))
    assert engine_config.DEFAULT_ENGINE in ENGINES
