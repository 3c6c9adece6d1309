"""What both front doors build graphs with: sums, copies in another format, windows that fit."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.graph import ir
from esbflow.lowering.builder import GraphBuilder
from esbflow.lowering.engine_layer import OpenLayer
from esbflow.lowering.nodes import Stored, choice
from esbflow.lowering.view import View, channels_of, in_place, padded, pixels_of, unpadded
from esbflow.lowering.windows import windows_fit
from esbflow.numbers import Signed, Unsigned

X, Y = Stored("x", (2, 4, 4), Unsigned(4), 0.5), Stored("y", (2, 4, 4), Signed(8), 0.25)


def convolution(**more):
    return OpenLayer(ir.Conv2d, "c", X, {}, np.array([1.0, 2.0]), np.array([0.5, 0.0]), **more)


def test_the_stored_tensor_is_the_residual_whichever_comes_first():
    scaled = OpenLayer.copy_of(Y, "y").affine(np.array([2.0, -1.0]), np.array([1.0, 0.0]))
    for total in (convolution().plus(scaled), scaled.plus(convolution())):
        assert total.node is ir.Conv2d and total.source is X and total.residual is Y
        assert total.residual_gain.tolist() == [0.5, -0.25] and total.offset.tolist() == [1.5, 0.0]
    both = OpenLayer.copy_of(X, "x").plus(scaled)
    assert both.node is ir.Add and both.source is X and both.residual is Y


@pytest.mark.parametrize("first, second", [
    (convolution(), convolution()), (convolution(low=0.0), OpenLayer.copy_of(Y)),
    (convolution(), OpenLayer.copy_of(Y, high=6.0)), (replace(convolution(), node=ir.Linear), OpenLayer.copy_of(Y)),
    (convolution(residual=Y, residual_gain=np.ones(2)), OpenLayer.copy_of(Y))])
def test_sums_that_the_engine_has_not(first, second):
    assert first.plus(second) is None and second.plus(first) is None


def test_a_tensor_is_requantized_once_for_all_that_ask_for_a_format():
    builder = GraphBuilder("g")
    for _ in range(2):
        parts = builder.alike([X, Y, X], Signed(8), 0.25, lambda part: f"{part.name}_joined", "cat")
        assert [part.name for part in parts] == ["x_joined", "y", "x_joined"]
    assert [node.name for node in builder.graph.nodes] == ["x_joined"]
    joined = builder.concat("cat", parts)
    assert vars(joined) == dict(name="cat", shape=(6, 4, 4), form=Signed(8), scale=0.25)
    assert builder.graph.output.inputs == ("x_joined", "y", "x_joined")


@pytest.mark.parametrize("source, reach, stride, padding, fits, even", [
    ((1, 5, 5), (3, 3), (2, 2), (1, 1), {2, 3}, {3}), ((1, 4, 4), (2, 2), (2, 2), (0, 0), {2}, {2}),
    ((1, 6, 6), (3, 3), (1, 1), (1, 1), {5, 6, 7}, {6})])
def test_windows_have_less_than_one_of_zeros_behind(source, reach, stride, padding, fits, even):
    """3 from -1 on: maps of 5 hold two windows, and a third with one row of zeros behind it."""
    for wanted, kind in ((fits, False), (even, True)):
        assert {n for n in range(1, 10) if windows_fit(source, (1, n, n), reach, stride, padding, kind)} == wanted


def test_zeros_come_off_and_what_has_none_stays():
    assert unpadded(padded(X, (1, 0, 2, 3))) == (X, (1, 0, 2, 3)) and unpadded(X) == (X, (0, 0, 0, 0))


WITHIN = padded(X, (1, 1, 1, 1)).indices


@pytest.mark.parametrize("indices, pads, has_zeros", [
    (WITHIN, (1, 1, 1, 1), True), (WITHIN[..., 1:, :-1], (0, 1, 1, 0), True), (in_place(X.shape), (0, 0, 0, 0), False),
    (WITHIN[..., 2:], None, True), (WITHIN[:, ::-1], None, True), (WITHIN[:, :1], None, True), (WITHIN[..., :1], None, True),
    (WITHIN.transpose(0, 1, 3, 2), None, True), (np.roll(WITHIN, 2), None, True), (WITHIN.reshape(1, -1), None, True),
    (in_place(X.shape)[:, :, ::-1], None, False)])
def test_a_view_knows_whether_it_is_a_tensor_with_zeros_around_it(indices, pads, has_zeros):
    view = View(X, indices)
    assert view.pads == pads and view.has_zeros == has_zeros and view.shape == indices.shape[1:]


MAP = np.arange(3 * 4 * 5).reshape(3, 4, 5)


@pytest.mark.parametrize("moved, order, factors", [
    (MAP[[2, 0, 0]], [2, 0, 0], (1, 1)), (MAP[1:].repeat(2, axis=1).repeat(3, axis=2), [1, 2], (2, 3)), (MAP, [0, 1, 2], (1, 1))])
def test_whole_channels_are_found_whatever_moved_them(moved, order, factors):
    found, times = channels_of(moved, MAP.shape)
    assert found.tolist() == order and times == factors


@pytest.mark.parametrize("moved", [MAP[:, ::-1], MAP[:, :2], MAP[:, :, :4], MAP[:0], np.roll(MAP, 1), MAP.reshape(3, 5, 4)])
def test_what_are_no_whole_channels(moved):
    assert channels_of(moved, MAP.shape) is None


@pytest.mark.parametrize("moved, found", [
    (MAP[:, 1:3, 2:], ((1, 2), (1, 1))), (MAP[:, ::3, 1::2], ((0, 1), (3, 2))), (MAP[:, ::-1], None), (MAP[:2, 1:], None),
    (np.stack([MAP[0, :2], MAP[1, 1:3], MAP[2, :2]]), None)])
def test_rectangles_of_all_channels_alike(moved, found):
    assert pixels_of(moved, MAP.shape) == found


def test_a_choice_of_channels_may_have_zeros():
    assert (choice([2, -1, 0], 3)[:, :, 0, 0] @ [5, 6, 7]).tolist() == [7, 0, 5]
