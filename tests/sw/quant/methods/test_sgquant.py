"""SGQuant: the feature quantizer on exact values and extremes, memory to the bit, recipes, the automatic bit selection."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow.networks.agnn import AGNN
from esbflow.networks.gcn import GCN
from esbflow.networks.message_passing import Topology
from esbflow.quant.bit_search import select_bits
from esbflow.quant.layers import QuantLinear
from esbflow.quant.methods import sgquant
from esbflow.quant.methods.sgquant import FeatureQuantizer, GraphRecipe, Rows, feature_bits, memory, quantize_graph_network


def rows_of(degrees) -> Rows:
    degrees = torch.tensor(degrees, dtype=torch.int64)
    return Rows(torch.arange(len(degrees)), degrees, len(degrees))


def features(nodes: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(nodes, width, generator=torch.Generator().manual_seed(seed))


# -- codes --------------------------------------------------------------------------------------------------------
def test_codes_of_known_values():
    stored = FeatureQuantizer(2).codes(torch.tensor([[-1.0, -0.51], [0.49, 2.0]]), rows_of([0, 0]))
    assert stored.codes.tolist() == [[0, 0], [1, 3]]  # steps of one from -1; -0.51 is just below a half
    assert stored.scale.flatten().tolist() == [1, 1] and stored.low.flatten().tolist() == [-1, -1]


@pytest.mark.parametrize("ranges", sgquant.RANGES)
@pytest.mark.parametrize("bits", [1, 2, 4, 8, (8, 4, 2, 1)])
def test_error_is_at_most_half_a_step_and_extremes_are_kept(ranges, bits):
    rows = rows_of([0, 1, 3, 4, 7, 8, 15, 16, 200, 2])
    x = features(10, 6)
    quantizer = FeatureQuantizer(bits, ranges)
    stored = quantizer.codes(x, rows)
    assert (stored.codes >= 0).all() and (stored.codes < 2 ** quantizer.row_bits(rows)[:, None]).all()
    assert ((stored.values() - x).abs() <= stored.scale / 2 + 1e-9).all()
    groups = {"tensor": torch.zeros(10), "bucket": quantizer.buckets(rows), "node": rows.node}[ranges]
    for group in groups.unique():
        chosen = groups == group
        low = stored.low[chosen]
        assert (low == x[chosen].min()).all()
        high = stored.low + stored.scale * (torch.exp2(quantizer.row_bits(rows).double()) - 1)[:, None]
        assert high[chosen] == pytest.approx(torch.full_like(low, float(x[chosen].max())), rel=1e-6)


def test_degree_buckets_are_split_at_4_8_16_and_unseen_degrees_take_the_nearest():
    quantizer = FeatureQuantizer((8, 4, 2, 1))
    degrees = [0, 3, 4, 7, 8, 15, 16, 10**9]
    assert quantizer.buckets(rows_of(degrees)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert quantizer.row_bits(rows_of(degrees)).tolist() == [8, 8, 4, 4, 2, 2, 1, 1]


def test_a_binary_row_times_any_scale_is_exact_at_one_bit():
    x = (torch.rand(50, 40, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    x = x / x.sum(dim=1, keepdim=True).clamp(min=1)
    x[0], x[1] = 0, 1 / 40  # no word, all words
    assert torch.equal(FeatureQuantizer(1, "node")(x, rows_of([0] * 50)), x)


@pytest.mark.parametrize("ranges", sgquant.RANGES)
@pytest.mark.parametrize("value", [0.0, -3.25, 1e-45, 3e38])
def test_constant_features_are_exact_with_scale_one_and_code_zero(ranges, value):
    x = torch.full((5, 3), value)
    stored = FeatureQuantizer(4, ranges).codes(x, rows_of([0, 4, 8, 16, 1]))
    assert (stored.codes == 0).all() and (stored.scale == 1).all()
    assert torch.equal(FeatureQuantizer(4, ranges)(x, rows_of([0, 4, 8, 16, 1])), x)


def test_the_widest_and_the_narrowest_ranges_of_float32():
    for x in (torch.tensor([[-3.4e38, 3.4e38]]), torch.tensor([[0.0, 1e-45]])):
        out = FeatureQuantizer(4)(x, rows_of([0]))
        assert torch.isfinite(out).all() and torch.allclose(out, x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    with pytest.raises(ValueError, match="hidden holds NaN or infinity"):
        FeatureQuantizer(4, name="hidden")(torch.tensor([[1.0, bad]]), rows_of([0]))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("ranges", sgquant.RANGES)
def test_empty_tensors_stay_empty(shape, ranges):
    out = FeatureQuantizer((4, 4, 2, 2), ranges)(torch.zeros(shape), rows_of([0] * shape[0]))
    assert out.shape == shape


@given(seed=st.integers(0, 10**6), bits=st.integers(1, 8), ranges=st.sampled_from(sgquant.RANGES))
@settings(max_examples=40, deadline=None)
def test_quantizing_twice_is_quantizing_once(seed, bits, ranges):
    random = torch.Generator().manual_seed(seed)
    rows = rows_of(torch.randint(0, 30, (7,), generator=random).tolist())
    x = torch.randn(7, 5, generator=random) * 10 ** float(torch.randint(-6, 6, (1,), generator=random))
    quantizer = FeatureQuantizer(bits, ranges)
    once = quantizer.codes(x, rows)
    twice = quantizer.codes(once.values().float(), rows)
    # A bucket or tensor range may shrink only if its extremes moved, and they are kept.
    assert torch.equal(once.codes, twice.codes)


def test_the_gradient_passes_straight_through_and_real_features_are_untouched():
    x = features(4, 3).requires_grad_()
    (FeatureQuantizer(2)(x, rows_of([0] * 4)) * 3).sum().backward()
    assert torch.equal(x.grad, torch.full((4, 3), 3.0))
    real = FeatureQuantizer(32)
    assert real(x, rows_of([0] * 4)) is x
    with pytest.raises(ValueError, match="is not quantized, so it has no codes"):
        real.codes(x, rows_of([0] * 4))


def test_rows_of_edges_share_the_range_of_the_node_that_they_lead_to():
    topology = Topology([(0, 1), (0, 2)], 3)
    x = torch.tensor([[0.2], [0.3], [0.5], [0.4], [0.6], [0.9], [0.1]])  # 3 into node 0, 2 into 1, 2 into 2
    stored = FeatureQuantizer(1, "node").codes(x, topology.edge_rows)
    assert stored.low.flatten().tolist() == pytest.approx([0.2] * 3 + [0.4] * 2 + [0.1] * 2)
    assert stored.codes.flatten().tolist() == [0, 0, 1, 0, 1, 1, 0]


# -- memory -------------------------------------------------------------------------------------------------------
def test_stored_bits_are_counted_by_hand():
    rows = rows_of([0, 1, 5, 9, 20, 20])
    assert FeatureQuantizer(4).stored_bits(rows, 16) == 6 * 16 * 4 + 64
    assert FeatureQuantizer(4, "bucket").stored_bits(rows, 16) == 6 * 16 * 4 + 4 * 64
    assert FeatureQuantizer(1, "node").stored_bits(rows, 100) == 6 * 100 + 6 * 64
    assert FeatureQuantizer((8, 4, 2, 1)).stored_bits(rows, 10) == (2 * 8 + 4 + 2 + 2 * 1) * 10 + 64
    assert FeatureQuantizer(32).stored_bits(rows, 16) == 6 * 16 * 32


@pytest.mark.parametrize("network, attention", [(GCN, 0), (AGNN, 2)])
def test_memory_of_a_network(network, attention):
    topology = Topology([(0, 1), (1, 2), (3, 4)], 6)
    model = network(50, 3)
    real = memory(model, topology)
    assert real["total"] == real["total_float"] and real["input"] == 6 * 50 * 4
    assert real["attention"] == attention * 4 * (2 * 3 + 6)
    assert real["weights"] == 4 * sum(p.numel() for p in model.parameters())
    low = memory(quantize_graph_network(model, GraphRecipe()), topology)
    assert low["total_float"] == real["total"]
    assert low["input"] == round((6 * 50 + 6 * 64) / 8)
    assert low["attention"] == round(attention * (4 * 12 + 64) / 8)
    assert low["total"] == pytest.approx(sum(low[k] for k in ("input", "features", "attention", "weights")), abs=2)
    biases = 4 * sum(p.numel() for p in model.parameters() if p.dim() < 2)
    assert low["weights"] == round(50 * 16 / 2 + 16 * 3 / 2 + 2 * (16 + 3) + biases)


def test_average_bits_weigh_tensors_by_their_values():
    model = quantize_graph_network(AGNN(50, 3), GraphRecipe(combination=8, aggregation=(4, 2, 2, 2), attention=1))
    topology = Topology([(0, 1), (0, 2), (0, 3), (0, 4)], 6)  # node 0 has degree 4: the second bucket
    values = 3 * 6 * 16 + 2 * (6 + 8)
    assert feature_bits(model, topology) == round((6 * 16 * 8 + 2 * 16 * (5 * 4 + 2) + 2 * 14) / values, 2)


# -- recipes ------------------------------------------------------------------------------------------------------
def test_granularities_reach_the_tensors_they_name():
    recipe = GraphRecipe(combination=8, aggregation=(4, 4, 2, 2), attention=2, overrides=(("prop2_*", 3),), ranges="bucket")
    model = quantize_graph_network(AGNN(10, 3), recipe)
    bits = {name: quantizer.bits for name, quantizer in model.quantizers.items()}
    assert bits == {"layer1_input": 1, "prop1_features": (4, 4, 2, 2), "prop1_attention": 2, "prop2_features": 3,
                    "prop2_attention": 3, "layer2_input": 8}
    assert model.quantizers["layer1_input"].ranges == "node" and model.quantizers["prop1_features"].ranges == "bucket"
    assert isinstance(model.lin1, QuantLinear) and isinstance(model.lin2, QuantLinear)
    uniform = quantize_graph_network(GCN(10, 3), GraphRecipe.uniform(4, None))
    assert [q.bits for q in uniform.quantizers.values()] == [1, 4, 4, 4] and not isinstance(uniform.lin1, QuantLinear)


def test_the_network_that_is_quantized_stays_as_it_was():
    model = GCN(10, 3)
    low = quantize_graph_network(model, GraphRecipe())
    assert not len(model.quantizers) and low.lin1.weight is not model.lin1.weight


@pytest.mark.parametrize("make, message", [
    (lambda: FeatureQuantizer(0), "1 to 8 bits, or 32"),
    (lambda: FeatureQuantizer(9), "1 to 8 bits, or 32"),
    (lambda: FeatureQuantizer(2.5), "1 to 8 bits, or 32"),
    (lambda: FeatureQuantizer(True), "1 to 8 bits, or 32"),
    (lambda: FeatureQuantizer((4, 4)), "3 split degrees make 4 buckets, but 2 widths"),
    (lambda: FeatureQuantizer((32, 4, 4, 4)), "either all degree buckets are real"),
    (lambda: FeatureQuantizer(4, "edge"), "ranges must be one of tensor, bucket, node"),
    (lambda: FeatureQuantizer(4, splits=(8, 4, 16)), "split degrees must ascend"),
    (lambda: GraphRecipe(combination=11), "1 to 8 bits, or 32"),
    (lambda: GraphRecipe(weights="u4"), "weights need a signed format"),
    (lambda: quantize_graph_network(GCN(4, 2), GraphRecipe(overrides=(("layer3_*", 2),))), "no tensor matches 'layer3_\\*'")])
def test_bad_recipes_are_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- automatic bit selection ---------------------------------------------------------------------------------------
SPACE = {"a": (1, 2, 4, 8), "b": (1, 2, 4, 8), "c": ((1, 1), (4, 2), (8, 8)), "d": ("twn", "esb4.1")}


def worth(choice):
    """Accuracy falls where a, c's first bucket or the weights are narrow; b does not matter."""
    return (80 - 3 * (choice["a"] < 4) - 2 * (choice["c"][0] < 4) - 4 * (choice["d"] == "twn"))


def size(choice):
    return 10 * choice["a"] + 20 * choice["b"] + sum(choice["c"]) + (2 if choice["d"] == "twn" else 4)


def test_the_search_finds_the_smallest_good_setting_of_a_known_function():
    measured = []
    found = select_bits(SPACE, lambda c: measured.append(c) or worth(c), size, reference=80.0, first=16, rounds=4, each=6)
    assert found.best.choice == {"a": 4, "b": 1, "c": (4, 2), "d": "esb4.1"} and found.best.memory == 40 + 20 + 6 + 4
    assert len(measured) == len(found.trials) <= 40 < 4 * 4 * 3 * 2
    assert len({str(c) for c in measured}) == len(measured)  # none twice


def test_the_search_beats_random_settings_in_a_large_space():
    space = {f"t{i}": (1, 2, 3, 4, 6, 8) for i in range(6)}
    found = select_bits(space, lambda c: 80 - sum((c[f"t{i}"] < 3) for i in range(3)), lambda c: sum(c.values()), 80.0,
                        first=24, rounds=6, each=8)
    assert found.best is not None and found.best.accuracy >= 79.5
    random_best = min((t.memory for t in found.trials[:24] if t.accuracy >= 79.5), default=1000)
    assert found.best.memory < random_best and found.best.memory <= 16  # 12 is the least possible


def test_the_search_is_repeatable_reports_and_ends_in_small_spaces():
    seen = []
    one, two = (select_bits(SPACE, worth, size, 80.0, seed=3, report=lambda *a: seen.append(a)) for _ in range(2))
    assert one == two and seen[0][0] == 1 and seen[-1][0] <= seen[-1][1]
    small = select_bits({"a": (2, 4)}, lambda c: 70 + c["a"], lambda c: c["a"], 74.0)
    assert small.best.choice == {"a": 4} and len(small.trials) == 2
    assert select_bits({"a": (2,)}, lambda c: 70, lambda c: 1, 74.0).best is None
    assert select_bits({"a": (2, 4)}, lambda c: 70, lambda c: c["a"], 70.5, drop=0.5).best.choice == {"a": 2}  # the edge counts


def test_known_settings_are_measured_first():
    known = ({"a": 4, "b": 4, "c": (4, 2), "d": "esb4.1"}, {"a": 8, "b": 8, "c": (8, 8), "d": "esb4.1"})  # and the widest
    found = select_bits(SPACE, worth, size, 80.0, first=3, rounds=0, known=known)
    assert [trial.choice for trial in found.trials[:2]] == [known[1], known[0]] and len(found.trials) == 3


def test_a_second_look_is_asked_from_the_smallest_on_until_it_agrees():
    space, real = {"a": (1, 2, 3, 4, 6, 8)}, {1: 79.6, 2: 79.9, 3: 79.7, 4: 80.1, 6: 80.0, 8: 80.2}
    asked = []

    def confirm(choice):
        asked.append(choice["a"])
        return choice["a"] >= 6

    def search(confirm):
        asked.clear()
        return select_bits(space, lambda c: real[c["a"]], lambda c: c["a"], 80.0, confirm=confirm)

    found = search(confirm)
    assert asked == [1, 2, 4, 8] and found.best.choice == {"a": 8}  # 3 and 6 measured no better than smaller ones refused
    assert [t.choice["a"] for t in found.refused] == [1, 2, 4]
    real[8] = 79.9
    found = search(confirm)  # now 8 did not either: those above 4 are asked after all
    assert asked == [1, 2, 4, 6] and found.best.choice == {"a": 6}
    found = search(lambda choice: False)
    assert found.best is None and [t.choice["a"] for t in found.refused] == [1, 2, 4, 6, 8]
    asked.clear()
    assert select_bits(space, lambda c: 70, lambda c: c["a"], 80.0, confirm=confirm).best is None and asked == []


@pytest.mark.parametrize("arguments, message", [
    (dict(space={}), "the space of settings is empty"), (dict(space={"a": ()}), "the space of settings is empty"),
    (dict(known=({"a": 1},)), "is not one of the space"),
    (dict(known=({"a": 3, "b": 1, "c": (1, 1), "d": "twn"},)), "is not one of the space"), (dict(first=1), "first must be at least 2"), (dict(drop=-1), "not negative"),
    (dict(measure=lambda c: math.nan), "is not finite")])
def test_bad_searches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_bits(**{**dict(space=SPACE, measure=worth, memory=size, reference=80.0), **arguments})
