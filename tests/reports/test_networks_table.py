"""The table of networks in docs/networks.md is what its command measures."""

from pathlib import Path

import pytest

from esbflow.engines import DEFAULT_ENGINE, engine
from esbflow.networks.registry import NETWORKS
from esbflow.reports import networks_table
from esbflow.reports.marks import fill, filled

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"


@pytest.fixture(scope="module")
def digits():
    return networks_table.row("digits", engine("tiny4x4"))


def test_a_row_by_hand(digits):
    # 1 -> 16 channels of 3x3 on 8x8 pixels, ...: networks/digits.py.
    cells = [cell.strip() for cell in digits.strip("|").split("|")]
    assert cells[:5] == ["`digits`", "1x8x8", "13,706", "0.1 M", "4"]
    assert int(cells[5].replace(",", "")) > 0.1e6 / 16 and 0 < int(cells[6]) <= 100


@pytest.mark.parametrize("name", ["digits", "lenet5"])
def test_the_page_says_what_is_measured(name):
    assert networks_table.row(name, engine(DEFAULT_ENGINE)) in filled(PAGE.read_text(), networks_table.MARK).splitlines()


def test_the_page_has_every_network_in_order():
    lines = filled(PAGE.read_text(), networks_table.MARK).splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(NETWORKS)


def test_only_what_is_asked_for_is_measured(digits):
    old = "\n".join(["| name |", *(f"| `{name}` | old |" for name in NETWORKS)])
    said = []
    new = networks_table.table(old, ["digits"], engine("tiny4x4"), said.append)
    assert said == [digits]
    assert new.splitlines()[2:] == [digits if name == "digits" else f"| `{name}` | old |" for name in NETWORKS]
    assert new.startswith(networks_table.HEAD)
    with pytest.raises(ValueError, match=r"^the table has no row of lenet5 yet; measure it too$"):
        networks_table.table("", ["digits"], engine("tiny4x4"), said.append)
    with pytest.raises(ValueError, match=r"^no network named 'resnet19'; known: "):
        networks_table.table(old, ["resnet19"], engine("tiny4x4"), said.append)


def test_the_command_fills_the_page(tmp_path, capsys):
    page = tmp_path / "networks.md"
    page.write_text("before\n" + fill("<!-- table of networks --><!-- end of table of networks -->", networks_table.MARK,
                                      "\n".join(f"| `{name}` | old |" for name in NETWORKS), "page") + "\nafter")
    networks_table.main([str(tmp_path), "digits"])
    text = page.read_text()
    assert text.startswith("before\n<!-- table of networks -->\n| name | images |")
    assert text.endswith("<!-- end of table of networks -->\nafter") and text.count("| old |") == len(NETWORKS) - 1
    assert "| `digits` | 1x8x8 | 13,706 |" in text and capsys.readouterr().out.startswith("| `digits` | 1x8x8 |")


def test_marks():
    assert filled("a <!-- x -->\nold\nlines\n<!-- end of x --> b", "x") == "old\nlines"
    assert filled("nothing", "x") == ""
    with pytest.raises(ValueError, match=r"^here has no <!-- x --> \.\.\. <!-- end of x --> to fill$"):
        fill("<!-- x -->", "x", "new", "here")
