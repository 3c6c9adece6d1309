"""The README and docs/: snippets run, links resolve, commands and options exist."""

import argparse
import os
import re
import shlex
from pathlib import Path

import pytest

from esbflow.cli import parser
from esbflow.reports.demo_table import fill, markdown
from esbflow.reports.marks import filled

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def accurate(printed):
    return float(printed) > 0.8 and Path("graph.npz").exists()


def built(printed):
    return Path("engine/engine.v").exists() and len(printed.splitlines()) == 2  # resources, rates


def simulated(printed):
    cycles, stalls = map(int, printed.split())
    return cycles > stalls > 0


def driven(printed):
    return printed.startswith("(10, 10, 1, 1)")


@pytest.mark.parametrize("snippet, holds", [*zip(SNIPPETS, (accurate, built, simulated, driven), strict=True)],
                         ids=lambda value: getattr(value, "__name__", ""))
def test_each_snippet_runs_alone(snippet, holds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert holds(capsys.readouterr().out)


def test_the_readme_is_short():
    tables = sum(len(filled(README, name).splitlines()) for name in ("table of engines", "demo table"))
    assert len(README.splitlines()) - tables <= 135, "beside the generated tables"


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_are_short(snippet):
    statements = [line for line in snippet.splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(statements) <= 15
    assert max(map(len, snippet.splitlines())) <= 125


@pytest.mark.parametrize("page", [*PAGES, ROOT / ".github" / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"({page.name})" in index, f"docs/index.md does not list {page.name}"


def test_the_commands_of_the_page_are_accepted():
    page = (ROOT / "docs" / "command_line.md").read_text()
    lines = re.findall(r"^    esbflow (.*?)(?:\s+#.*)?$", page, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        parser().parse_args(shlex.split(line))


def commands_of(given) -> list:
    """The parser's commands, and theirs."""
    found = [choice for action in given._actions if isinstance(action, argparse._SubParsersAction)
             for choice in action.choices.values()]
    return [*found, *(inner for choice in found for inner in commands_of(choice))]


def test_every_option_is_documented():
    text = (ROOT / "docs" / "command_line.md").read_text()
    for command in commands_of(parser()):
        assert f"`{command.prog.removeprefix('esbflow ')}" in text
        for option in command._option_string_actions:
            if option not in ("-h", "--help"):
                assert option in text, f"docs/command_line.md does not mention {option} of {command.prog}"


def test_every_environment_variable_is_documented():
    text = (ROOT / "docs" / "command_line.md").read_text()
    sources = [ROOT / "Makefile", *(path for part in ("sw", "hw", "sim", "tests") for path in (ROOT / part).rglob("*.py"))]
    used = {name for path in sources for name in re.findall(r"\bESBFLOW_[A-Z_]+\b", path.read_text())}
    assert {name for name in used if f"`{name}`" not in text} == set()


def test_the_table_is_filled_between_its_marks():
    content = {
        "training": {"images": 10000, "float_top1": 99.1, "fake_quant_top1": 99.0, "graph_top1": 99.0}, "images": 200,
        "float_top1": 99.5, "fake_quant_top1": 99.0, "graph_top1": 99.0, "top1": 99.0, "mismatches": 0, "values": 2000,
        "cycles_per_image": 20170.6, "batch": 8, "utilization": 0.444, "lut": 30000, "ff": 20000, "bram": 39.5, "dsp": 0,
        "clock_mhz": 250, "frames_per_second": 12394.2, "gops": 56.8, "gops_peak": 128.0, "gops_per_klut": 1.6,
        "gops_peak_per_klut": 3.7, "sim_cycles_per_second": 266551.7, "demo_seconds": 300, "model": "m", "engine": "e"}
    text = fill("before\n<!-- demo table -->old<!-- end of demo table -->\nafter", content)
    assert text == f"before\n<!-- demo table -->\n{markdown(content)}\n<!-- end of demo table -->\nafter"
    assert "| output values that differ, RTL from graph | 0 of 2,000 | compared |" in text
    with pytest.raises(ValueError, match=r"^the README has no <!-- demo table -->"):
        fill("", content)


def test_nothing_names_places_outside_of_the_repository():
    for page in PAGES:
        assert not re.search(r"(?<!/usr)/(?:work|tmp|home|root)/", page.read_text()), page.name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
