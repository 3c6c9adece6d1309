"""A component's docstring lists its members, and every direction and width that stands there is the one that it has.

A word in capitals stands for any text: `take_KIND` for take_constants and others.
"""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from amaranth.hdl import Shape
from amaranth.lib.wiring import Component, Flow, Signature

import esbhw
from esbflow import engine_facts, requantizer
from esbflow.engine_config import EngineConfig
from esbhw.engine.fault_table import ADDRESSES, FAULTS, LAYERS

CONFIG = EngineConfig(
    "full", rows=8, cols=16, array="table", table_groups=2, weight_min=-8, weight_max=7, weight_path_beats=4, weight_ports=2,
    channel_unit=4, slices=4, activation_ports=2, stripes=True, batch_tiles=True, function_table=True, image_beats=32, map_beats=64,
    accumulator_depth=128, activation_beats=32, residual_beats=64, weight_slots=4)
"""With every option, and no two sizes alike that are easily confused."""
ARGUMENTS = {
    "BlockMemory": (64, 3), "BurstQueue": (5, 8), "BurstSplitter": (32, 3, None, 2, 64), "ClockCrossing": (9,),
    "CodebookDecoder": (5, 3), "Counters": (), "FaultEncoder": (FAULTS, len(ADDRESSES), len(LAYERS)), "Fifo": (9, 16),
    "HostBridge": (4, 1024, 10**6), "InstructionQueue": ("LOAD", 8), "LevelCrossing": (), "Loader": (CONFIG, "LOAD", 2, 4),
    "LutRam": (9,), "LutRamPorts": (9, 3), "MapMemory": (64,), "ReadPort": (5, 7), "Receiver": (8,), "Requantizer": (CONFIG, 8), "ResetCrossing": (),
    "RowsInside": (4, 12), "Sender": (8,), "Spread": (4, 2, 3, True, 1), "StripeRows": (4,), "TableGenerators": (CONFIG, 3),
    "Tokens": (), "Watchdog": (5,), "WritePort": (32, 2, 7),
}
"""Of the components that take more, or other things, than a configuration."""


def components() -> dict:
    """{name: class} of the public components of the blocks."""
    found = {}
    for folder in ("engine", "arithmetic", "fabric", "host_bridge"):
        for path in sorted((Path(esbhw.__file__).parent / folder).glob("*.py")):
            module = importlib.import_module(f"esbhw.{folder}.{path.stem}")
            found |= {name: part for name, part in vars(module).items() if inspect.isclass(part) and issubclass(part, Component)
                      and part.__module__ == module.__name__ and not name.startswith("_")}
    return found


class Names(dict):
    """What the width of a member may be written with: arguments, the configuration's fields and facts, the module's names."""

    def __init__(self, part: type, arguments: tuple):
        bound = inspect.signature(part).bind(*arguments)
        bound.apply_defaults()
        super().__init__(bound.arguments, ways=CONFIG.slices)
        self._module = vars(inspect.getmodule(part))

    def __missing__(self, name):
        for source in (engine_facts, requantizer):
            if inspect.isfunction(fact := getattr(source, name, None)):
                return fact(CONFIG)
        return getattr(CONFIG, name) if hasattr(CONFIG, name) else self._module[name]


def inside(text: str) -> str:
    """The parenthesis that a text begins with, or nothing.

    >>> inside("(rows * (a + b)), more")
    'rows * (a + b)'
    """
    depth = 0
    for k, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if not depth:
            return text[1:k]
    return ""


def members(docstring: str) -> dict:
    r"""{member: (In or Out, what its width is written with)}.

    >>> members("Members\n-------\na, b (words) : In(rows * 4), what it is;  c : Out")
    {'a': ('In', 'rows * 4'), 'b': ('In', 'rows * 4'), 'c': ('Out', '')}
    """
    found = {}
    text = docstring.partition("Members\n-------\n")[2].partition("\n\nRaises")[0]
    name = r"\w+(?: \([^()]*\))?"
    for match in re.finditer(rf"({name}(?:,\s+{name})*) : (In|Out)", text):
        for member in re.sub(r" \([^()]*\)", "", match[1]).replace(",", " ").split():
            found[member] = match[2], inside(text[match.end():])
    return found


def width(text: str, names: Names):
    """A number of bits, or a signature."""
    stream = re.fullmatch(r"stream of (.+?)(?: bits)?( for each slice)?", text)
    value = eval(stream[1] if stream else text, {}, names)
    if isinstance(value, Signature):
        return value
    return Shape.cast(value).width * (CONFIG.slices if stream and stream[2] else 1)


def described(part: type) -> dict:
    """What `members` finds in a component's docstring, or in that of the signature that it names."""
    docstring = inspect.getdoc(part)
    if signature := re.search(r"ports as in `(\w+)`", docstring):
        docstring = inspect.getdoc(vars(inspect.getmodule(part))[signature[1]])
    return members(docstring)


def entry(member: str, said: dict) -> str:
    """The name under which a member is described; empty if it is not."""
    return member if member in said else next(
        (name for name in said if re.fullmatch(re.sub("[A-Z]+", ".+", name), member)), "")


@pytest.mark.parametrize("name", components())
def test_members_are_as_the_docstring_says(name):
    part = components()[name]
    arguments = ARGUMENTS.get(name, (CONFIG,))
    said, names = described(part), Names(part, arguments)
    found = part(*arguments).signature.members
    unknown = {entry(member, said) for member in found} ^ set(said)
    assert not unknown, f"not described, or no member: {unknown or [member for member in found if not entry(member, said)]}"
    for member, port in found.items():
        flow, text = said[entry(member, said)]
        names["NAME"] = member
        assert port.flow == Flow[flow], member
        expected = width(text, names)
        if port.is_port:
            assert Shape.cast(port.shape).width == expected, member
        elif text.startswith("stream"):
            assert Shape.cast(port.signature.members["payload"].shape).width == expected, member
        else:
            assert port.signature == (expected if port.flow == Flow.Out else expected.flip()), member
