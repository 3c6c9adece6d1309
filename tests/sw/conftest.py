"""Fixtures that several test files use."""

from contextlib import contextmanager

import numpy as np
import pytest

from esbflow.networks.message_passing import Topology
from esbflow.training.run_state import RunState
from tests.sw.citation_graphs import small_data


@pytest.fixture(scope="module")
def task():
    """Images of 8x8 whose class is the row pair and half that is bright: enough to see training work."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 8, 512)
    images = random.integers(0, 60, (512, 1, 8, 8))
    for image, label in zip(images, labels):
        image[0, label // 2 * 2:label // 2 * 2 + 2, label % 2 * 4:label % 2 * 4 + 4] += 120
    return images.astype(np.uint8), labels.astype(np.int64)


@pytest.fixture(scope="module")
def sixty_nodes():
    """(data, topology) of sixty nodes."""
    data = small_data()
    return data, Topology(data.edges, len(data.labels))


@pytest.fixture
def killed_after(monkeypatch):
    """`with killed_after(n):` a training in there must die as soon as its n-th checkpoint is written."""
    @contextmanager
    def block(number):
        save = RunState.save

        def save_and_die(state, model, run, done):
            save(state, model, run, done)
            if done == number:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RunState, "save", save_and_die)
            with pytest.raises(KeyboardInterrupt):
                yield
    return block
