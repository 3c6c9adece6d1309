"""The simulated board, an overlay of the smallest engine, and a network for it."""

import numpy as np
import pytest

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images


@pytest.fixture(scope="module")
def bit(tmp_path_factory):
    from esbsim.board import write_overlay

    return write_overlay(ENGINES["tiny4x4"], tmp_path_factory.mktemp("overlay"))


@pytest.fixture
def board():
    from esbsim import board as module
    from esbsim.simulator import MemoryTiming

    device = module.board()
    device.timing, device.shared_bytes_per_cycle, device.trace = MemoryTiming(), None, None
    device.connect_interrupt(True)
    return device


@pytest.fixture
def overlay(bit, board):
    import pynq

    return pynq.Overlay(str(bit))


@pytest.fixture(scope="module")
def network():
    """(program for batches of 2, images, what they give)"""
    random = np.random.default_rng(7)
    graph = random_graph(random, layers=3, channels=10, size=9, kinds=("conv", "residual", "max"))
    images = random_images(random, graph, 5)
    return compile_graph(graph, ENGINES["tiny4x4"], batch=2), images, execute(graph, images)
