"""The examples in documentation strings print what they say, in every module that has some."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

from esbflow import numbers

ROOT = Path(__file__).parents[1]
MODULES = sorted(".".join(path.relative_to(base).with_suffix("").parts)
                 for base in (ROOT / "sw", ROOT / "hw", ROOT) for path in base.glob(
                     "sim/esbsim/**/*.py" if base == ROOT else "**/*.py") if ">>> " in path.read_text())
MODULES = [name.removeprefix("sim.") for name in MODULES]


def test_modules_with_examples_are_found():
    assert {"esbflow.numbers", "esbflow.lowering.engine_layer", "esbhw.netlist", "esbhw.hwh"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    given = {"np": np, **{kind: getattr(numbers, kind) for kind in ("ESB", "Format", "Signed", "Unsigned")}}
    if name.startswith("esbflow.quant"):
        given["torch"] = pytest.importorskip("torch")
    module = importlib.import_module(name)
    found = doctest.testmod(module, extraglobs={k: v for k, v in given.items() if not hasattr(module, k)})
    assert found.failed == 0 < found.attempted
