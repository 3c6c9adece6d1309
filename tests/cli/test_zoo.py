"""The models that ship with esbflow: whole, described, and as good as their records say."""

import json

import numpy as np
import pytest

from esbflow import zoo
from esbflow.cli import main
from esbflow.graph.execute import execute
from esbflow.graph.file import load
from esbflow.training import record
from esbflow.training.api import top1
from esbflow.training.data import DataUnavailable, load_images

NAMES = list(zoo.entries())


def test_there_are_models_and_they_are_small():
    assert NAMES
    assert sum(path.stat().st_size for path in zoo.FOLDER.iterdir() if path.is_file()) < 20e6


@pytest.mark.parametrize("name", NAMES)
def test_every_model_loads_and_tells_how_it_was_made(name):
    entry, graph = zoo.entries()[name], load(zoo.resolve(f"zoo:{name}"))
    assert set(record.KEYS) <= set(entry)
    assert graph.name == entry["network"]
    images = np.zeros((2, *graph.input.shape), np.uint8)
    assert execute(graph, images).shape[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_as_good_as_its_record(name):
    entry, count = zoo.entries()[name], 1000
    try:
        images, labels = load_images(entry["data"], "test", count)
    except DataUnavailable as error:
        pytest.skip(str(error))
    found = top1(execute(load(zoo.graph_path(name)), images), labels)
    # Four standard deviations of a share measured on the first thousand images; test sets are not shuffled.
    share = entry["top1_integer_graph"] / 100
    assert abs(found - entry["top1_integer_graph"]) < 100 * 4 * (share * (1 - share) / count) ** 0.5 + 0.3


def test_the_command_lists_and_copies(tmp_path, capsys):
    assert main(["zoo"]) == 0
    assert all(name in capsys.readouterr().out.replace("\n", "") or len(name) > 12 for name in NAMES)
    assert main(["zoo", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == NAMES
    target = tmp_path / "copy.npz"
    assert main(["zoo", NAMES[0], "--out", str(target)]) == 0
    assert target.read_bytes() == zoo.graph_path(NAMES[0]).read_bytes() and list(tmp_path.iterdir()) == [target]


def test_graphs_of_the_zoo_go_where_graphs_go(capsys):
    assert main(["estimate", f"zoo:{NAMES[0]}", "--engine", "tiny4x4", "--json"]) == 0
    capsys.readouterr()
    assert main(["estimate", "zoo:none", "--engine", "tiny4x4"]) == 2
    assert f"the zoo has no model 'none'; it has {', '.join(NAMES)}" in capsys.readouterr().err
    assert main(["zoo", "none"]) == 2
