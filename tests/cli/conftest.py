"""A small model on disk, and the command line as a function."""

import json

import numpy as np
import pytest

from esbflow.cli import main
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.file import save
from esbflow.graph.random import random_graph, random_images
from esbflow.reports.html import weight_layers

ENGINE = "tiny4x4"


@pytest.fixture(scope="session")
def graph():
    """A graph with weights that fits the smallest engine."""
    random = np.random.default_rng(3)
    while True:
        found = random_graph(random, channels=8, size=8)
        try:
            compile_graph(found, ENGINES[ENGINE], 2)
        except ValueError:
            continue
        if weight_layers(found):
            return found


@pytest.fixture
def model(graph, tmp_path):
    return save(graph, tmp_path / "graph.npz")


@pytest.fixture
def data(graph, tmp_path):
    """Five labelled images that fit the graph."""
    images = random_images(np.random.default_rng(4), graph, 5)
    path = tmp_path / "images.npz"
    np.savez(path, images=images, labels=np.zeros(5, dtype=np.int64))
    return path


@pytest.fixture
def esbflow(capsys):
    """esbflow(*arguments) -> what it printed as JSON; any exit code but 0 fails the test."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments] + ["--json"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out)

    return run


@pytest.fixture
def refused(capsys):
    """refused(*arguments) -> the one sentence on standard error; anything but exit code 2 fails the test."""

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        printed = capsys.readouterr()
        assert code == 2, f"exit code {code}: {printed.out}{printed.err}"
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1, printed.err
        assert printed.err.startswith("esbflow") and "[Errno" not in printed.err
        return printed.err.strip()

    return run
