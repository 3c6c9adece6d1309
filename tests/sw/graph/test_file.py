"""What a graph refuses when it is validated, and its file."""

import json
from dataclasses import replace

import numpy as np
import pytest

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.graph.file import VERSION, load, save
from esbflow.graph.random import KINDS, LOOKUP_KINDS, random_graph, random_images
from esbflow.graph.validate import validate
from esbflow.numbers import ESB, Codebook, Signed, Unsigned
from tests.sw.graph_nodes import constants, conv_node, input_node


# -- validate -----------------------------------------------------------------------------------------------------
def small_graph():
    conv = conv_node(np.ones((4, 3, 3, 3)), (4, 6, 6), form=Signed(8), padding=(1, 1), requantizer=constants(4, s=4))
    pool = ir.MaxPool2d("pool", ("conv",), (4, 3, 3), Signed(8), 1.0)
    fc = ir.Linear("fc", ("pool",), (5, 1, 1), Signed(16), 0.5, weight=np.ones((5, 36), np.int64), weight_format=Signed(8),
                   weight_scale=np.ones(5), requantizer=constants(5))
    return ir.Graph("small", [input_node((3, 6, 6)), conv, pool, fc], info={"recipe": "none", "top1": 12.5})


def damaged(at, **changes):
    graph = small_graph()
    graph.nodes[at] = replace(graph.nodes[at], **changes)
    return graph


DAMAGE = {
    "no nodes": (lambda: ir.Graph("g"), r"graph g: its first node must be an Input"),
    "no input": (lambda: ir.Graph("g", small_graph().nodes[1:]), r"graph g: its first node must be an Input"),
    "name twice": (lambda: damaged(2, name="conv"), r"layer conv: the name is used twice"),
    "unknown input": (lambda: damaged(3, inputs=("nothing",)),
                      r"layer fc: its input 'nothing' is not computed before it"),
    "own input": (lambda: damaged(3, inputs=("fc",)), r"layer fc: its input 'fc' is not computed before it"),
    "two axes": (lambda: damaged(3, shape=(5, 1)), r"layer fc: its shape must be three positive sizes, not \(5, 1\)"),
    "empty": (lambda: damaged(3, shape=(5, 0, 1)), r"layer fc: its shape must be three positive sizes, not \(5, 0, 1\)"),
    "zero scale": (lambda: damaged(1, scale=0.0), r"layer conv: its scale must be positive and finite, not 0.0"),
    "nan scale": (lambda: damaged(1, scale=float("nan")), r"layer conv: its scale must be positive and finite, not nan"),
    "wrong shape": (lambda: damaged(1, shape=(4, 6, 8)),
                    r"layer conv: its shape is \(4, 6, 8\), its inputs give \(4, 6, 6\)"),
    "wrong pool": (lambda: damaged(2, shape=(4, 4, 4)),
                   r"layer pool: its shape is \(4, 4, 4\), its inputs give \(4, 3, 3\)"),
    "pool padding": (lambda: damaged(2, padding=(2, 0)),
                     r"layer pool: padding must be smaller than the kernel, and kernel and stride at least 1"),
    "no requantizer": (lambda: damaged(1, requantizer=None), r"layer conv: it has no requantizer"),
    "m too wide": (lambda: damaged(1, requantizer=constants(4, m=2048)),
                   r"layer conv: requantizer m must lie in -2048..2047"),
    "n too wide": (lambda: damaged(1, requantizer=constants(4, n=-2049)),
                   r"layer conv: requantizer n must lie in -2048..2047"),
    "b too wide": (lambda: damaged(1, requantizer=constants(4, b=2**39)),
                   r"layer conv: requantizer b must lie in -549755813888..549755813887"),
    "s too wide": (lambda: damaged(1, requantizer=constants(4, s=41)), r"layer conv: requantizer s must lie in 0..40"),
    "s negative": (lambda: damaged(1, requantizer=constants(4, s=-1)), r"layer conv: requantizer s must lie in 0..40"),
    "few constants": (lambda: damaged(1, requantizer=constants(3)), r"layer conv: requantizer m must be 4 integers"),
    "real constants": (lambda: damaged(1, requantizer=replace(constants(4), b=np.full(4, 0.5))),
                       r"layer conv: requantizer b must be 4 integers"),
    "table shape": (lambda: damaged(0, table=np.zeros((3, 255), np.int64)),
                    r"layer input: its table must have shape \(3, 256\), not \(3, 255\)"),
    "table levels": (lambda: damaged(0, table=np.full((3, 256), 200)),
                     r"layer input: its table holds values that are not levels of s8"),
    "channels": (lambda: damaged(1, weight=np.ones((4, 2, 3, 3), np.int64)),
                 r"layer conv: 3 input channels do not fit weights of 2 in 1 groups"),
    "groups": (lambda: damaged(1, weight=np.ones((4, 1, 3, 3), np.int64), groups=3),
               r"layer conv: 3 input channels do not fit weights of 1 in 3 groups"),
    "stride": (lambda: damaged(1, stride=(0, 1)), r"layer conv: stride and dilation must be at least 1, padding at least 0"),
    "residual": (lambda: damaged(1, inputs=("input", "input")), r"layer conv: its residual has shape \(3, 6, 6\), not \(4, 6, 6\)"),
    "three inputs": (lambda: damaged(1, inputs=("input",) * 3), r"layer conv: it has 3 inputs"),
    "linear": (lambda: damaged(3, weight=np.ones((5, 35), np.int64)), r"layer fc: its weights take 35 values, its input has 36"),
    "concat": (lambda: ir.Graph("g", [*small_graph().nodes, ir.Concat("all", ("conv", "fc"), (9, 6, 6), Signed(8), 1.0)]),
               r"layer all: all its inputs must share format, scale, height and width"),
    "add": (lambda: ir.Graph("g", [*small_graph().nodes, ir.Add("sum", ("conv", "pool"), (4, 6, 6), Signed(8), 1.0,
                                                               requantizer=constants(4))]),
            r"layer sum: its inputs have different shapes"),
    "short lookup": (lambda: with_lookup("conv", np.zeros(255)), r"layer act: its table must have shape \(256,\), not \(255,\)"),
    "lookup levels": (lambda: with_lookup("conv", np.full(256, 16)),
                      r"layer act: its table holds values that are not levels of u4"),
    "wide lookup": (lambda: with_lookup("fc", np.zeros(256)), r"layer act: its input must have at most 8 bits, not the format s16"),
    "wide entries": (lambda: with_lookup("conv", np.zeros(256), form=Signed(9)),
                     r"layer act: its result must have at most 8 bits, not the format s9"),
}


def with_lookup(source, table, form=Unsigned(4)):
    graph = small_graph()
    graph.nodes.append(ir.Lookup("act", (source,), graph[source].shape, form, 1.0, table=table.astype(np.int64)))
    return graph


def test_the_graph_that_is_damaged_below_is_well_formed():
    assert validate(small_graph()).output.name == "fc"


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_graph_is_refused_by_name_and_never_saved(kind, tmp_path):
    make, message = DAMAGE[kind]
    for action in (validate, lambda graph: save(graph, tmp_path / "graph.npz")):
        with pytest.raises(GraphError, match=f"^{message}$"):
            action(make())
    assert list(tmp_path.iterdir()) == []


# -- the file -----------------------------------------------------------------------------------------------------
def assert_same_graph(one, two):
    assert (one.name, one.info, len(one.nodes)) == (two.name, two.info, len(two.nodes))
    for a, b in zip(one.nodes, two.nodes):
        assert type(a) is type(b)
        for key, value in vars(a).items():
            other = getattr(b, key)
            if isinstance(value, ir.Requantizer):
                for name in "mnbs":
                    assert np.array_equal(getattr(value, name), getattr(other, name)), (a.name, name)
            elif isinstance(value, np.ndarray):
                assert np.array_equal(value, other) and value.dtype == other.dtype, (a.name, key)
            else:
                assert value == other and type(value) is type(other), (a.name, key)


@pytest.mark.parametrize("seed", range(50))
def test_a_saved_graph_reads_back_the_same(seed, tmp_path):
    random = np.random.default_rng(seed)
    graph = random_graph(random, channels=12, size=8, kinds=(*KINDS, *LOOKUP_KINDS))
    graph.info.update(recipe="{}", top1=99.25, seed=seed)
    loaded = load(save(graph, tmp_path / "a folder" / "graph.npz"))
    assert_same_graph(graph, loaded)
    images = random_images(random, graph, 2)
    assert np.array_equal(execute(loaded, images), execute(graph, images))
    assert [path.name for path in (tmp_path / "a folder").iterdir()] == ["graph.npz"]


def test_formats_of_all_kinds_survive_the_file(tmp_path):
    graph = small_graph()
    graph.nodes[1] = replace(graph.nodes[1], weight_format=Codebook((-3, -1, 1, 3)), format=ESB(6, 3),
                             scale=float(np.float32(0.1)))
    graph.nodes[2] = replace(graph.nodes[2], format=ESB(6, 3))
    assert_same_graph(graph, load(save(graph, tmp_path / "graph.npz")))


def test_a_file_cut_at_any_place_is_refused(tmp_path):
    content = save(small_graph(), tmp_path / "graph.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in [0, 1, 2, 3, 4, 30, *range(50, len(content), 97), len(content) - 23, len(content) - 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(GraphError, match=r"^.*cut\.npz is not a whole model file \(.*\); export the model again$"):
            load(path)


def test_a_file_with_a_changed_byte_is_refused_or_reads_the_same(tmp_path):
    graph = small_graph()
    content = bytearray(save(graph, tmp_path / "graph.npz").read_bytes())
    path, refused = tmp_path / "changed.npz", 0
    for place in range(0, len(content), 61):
        content[place] ^= 0x55
        path.write_bytes(content)
        content[place] ^= 0x55
        try:
            loaded = load(path)
        except GraphError:
            refused += 1
        else:
            assert_same_graph(graph, loaded)  # the byte was one that zip does not use
    assert refused > 10


def rewritten(path, change):
    """The file with its description changed by `change(meta)`."""
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes().decode())
    change(meta)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("change, message", [
    (lambda meta: meta.update(version=VERSION + 1),
     rf"has model version {VERSION + 1} and this program reads {VERSION}; export the model again$"),
    (lambda meta: meta.update(format="esbflow program"), r"is not a model file; make one with `esbflow export`$"),
    (lambda meta: meta["nodes"][2].update(operator="Sigmoid"),
     r"is not a whole model file \('Sigmoid'\); export the model again$"),
    (lambda meta: meta["nodes"][2].update(colour="red"), r"is not a whole model file \(.*colour.*\); export the model again$"),
    (lambda meta: meta["nodes"][1].update(format={"format": "fp4"}),
     r"is not a whole model file \('fp4' is not a format.*\); export the model again$"),
])
def test_a_file_with_another_content_is_refused(change, message, tmp_path):
    path = rewritten(save(small_graph(), tmp_path / "graph.npz"), change)
    with pytest.raises(GraphError, match=message):
        load(path)


def test_a_file_whose_graph_is_not_well_formed_is_refused(tmp_path):
    path = rewritten(save(small_graph(), tmp_path / "graph.npz"), lambda meta: meta["nodes"][3].update(scale=-1.0))
    with pytest.raises(GraphError, match=r"^layer fc: its scale must be positive and finite, not -1.0$"):
        load(path)


@pytest.mark.parametrize("change", [
    lambda meta: meta.pop("name"), lambda meta: meta.pop("nodes"), lambda meta: meta.update(nodes=7),
    lambda meta: meta["nodes"].append("text"), lambda meta: meta["nodes"][1].pop("shape"),
    lambda meta: meta["nodes"][1].update(shape=5), lambda meta: meta["nodes"][1].update(inputs=None),
    lambda meta: meta["nodes"][1].update(weight=None), lambda meta: meta["nodes"][2].update(kernel={"tuple": [2]}),
    lambda meta: meta["nodes"][1].update(format=None), lambda meta: meta["nodes"][1].update(scale="big")])
def test_a_file_that_lacks_something_is_refused(change, tmp_path):
    path = rewritten(save(small_graph(), tmp_path / "graph.npz"), change)
    with pytest.raises(GraphError):
        load(path)


def test_other_files_and_no_file_are_refused(tmp_path):
    with pytest.raises(GraphError, match=r"^there is no model file .*none\.npz; make one with `esbflow train` or `esbflow export`$"):
        load(tmp_path / "none.npz")
    text, array, others = tmp_path / "text.npz", tmp_path / "array.npy", tmp_path / "others.npz"
    text.write_text("hello")
    np.save(array, np.zeros(3))
    np.savez(others, x=np.zeros(3))
    for path in (text, array, others, tmp_path):
        with pytest.raises(GraphError, match=r"is not a whole model file \(.*\); export the model again$"):
            load(path)


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = save(small_graph(), tmp_path / "graph.npz")
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        save(small_graph(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_missing_node_is_named():
    with pytest.raises(KeyError, match=r"no node named 'conv9' in graph 'small'"):
        small_graph()["conv9"]


@pytest.mark.parametrize("operator", ir.OPERATORS.values(), ids=ir.OPERATORS)
def test_every_operator_has_an_executor_and_a_shape_rule(operator):
    from esbflow.graph.execute import EXECUTORS
    from esbflow.graph.validate import _SHAPES

    assert operator in EXECUTORS and operator in _SHAPES
