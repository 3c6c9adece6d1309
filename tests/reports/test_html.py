"""report.html: one file, well formed, with the figures it was given."""

import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.random import random_graph
from esbflow.numbers import ESB, Signed
from esbflow.reports import plots
from esbflow.reports.estimate import estimate
from esbflow.reports.html import weight_layers, write_report
from esbflow.reports.lost import REASONS

CONFIG = ENGINES["tiny4x4"]
BLOCK = {"pairs": 5, "lut": 70, "lutram": 8, "ff": 50, "carry8": 2.5, "bram36": 1.5, "dsp": 0, "latches": 0}


@pytest.fixture(scope="module")
def graph():
    random = np.random.default_rng(11)
    while True:
        found = random_graph(random, channels=10, size=10)
        try:
            compile_graph(found, CONFIG, 2)
        except ValueError:
            continue
        if weight_layers(found):
            return found


@pytest.fixture(scope="module")
def report(graph):
    return estimate(graph, CONFIG, 2)


def test_the_page_stands_alone(graph, report, tmp_path):
    report = report | {"resources": {**BLOCK, "blocks": {"array": BLOCK}}, "lut": 70, "dsp": 0}
    text = write_report(report, graph, tmp_path / "deep" / "report.html").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!#)(?:http|/|\w+\.)", text)
    assert "<script" not in text
    assert text.count("<svg") == 3
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)
    HTMLParser().feed(text)
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    for layer in report["layers"]:
        assert layer["name"] in text
    assert text.index("Where the cycles go") < text.index("What the engine is made of") < text.index("Weights and the levels")
    assert all(meaning in unescape(text) for meaning in REASONS.values())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_figures_that_are_missing_are_left_out(graph, report, tmp_path):
    text = write_report(report, graph, tmp_path / "report.html").read_text()
    assert "An estimate: nothing was run." in text
    assert "What the engine is made of" not in text
    assert "None" not in text


def test_differing_values_are_said_first(graph, report, tmp_path):
    report = report | {"mismatches": 3, "values": 40, "backend": "rtl", "images": 4}
    text = write_report(report, graph, tmp_path / "report.html").read_text()
    assert "3 output values differ from the integer graph: the engine or its driver is wrong." in text


def test_names_are_escaped(graph, report, tmp_path):
    text = write_report(report | {"model": "<script>alert(1)</script>"}, graph, tmp_path / "report.html").read_text()
    assert "<script" not in text


def test_measured_counters_win_over_the_model(graph, report, tmp_path):
    measured = [{"name": "measured one", "cycles": 100, "compute": 60, "stall_weights": 30}]
    text = write_report(report | {"measured_layers": measured}, graph, tmp_path / "report.html").read_text()
    assert "Counted by the engine" in text
    assert "measured one" in text


def test_what_is_no_report_is_refused(graph, tmp_path):
    with pytest.raises(ValueError, match=r"^the report has no 'model'; make one with `esbflow demo` or"):
        write_report({}, graph, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_drawing_twice_gives_the_same_page(graph, report, tmp_path):
    assert (write_report(report, graph, tmp_path / "a.html").read_text()
            == write_report(report, graph, tmp_path / "b.html").read_text())


def test_wide_formats_and_real_weights_are_drawn():
    random = np.random.default_rng(5)
    real = random.normal(size=300) * 4
    text = plots.weight_histograms([("low", np.rint(real).clip(-4, 4).astype(int), ESB(4, 1), real),
                                    ("wide", random.integers(-128, 128, 300), Signed(8), None)])
    assert "before rounding" in text
    assert "low: esb4.1, 300 weights" in text
