"""The records of engines are those of today's configurations, and README and page are made of them."""

import re
from pathlib import Path

import pytest

from esbflow import area
from esbflow.engines import ENGINES
from esbflow.reports.marks import filled
from esbhw import goals, performance, performance_page, performance_picture, readme_table, yosys
from esbhw.block_records import BLOCKS, BLOCKS_FILE, measure
from esbhw.boards import BOARDS
from esbhw.interfaces import masters
from esbhw.synthesis import Resources, synthesize

ROOT = Path(__file__).parents[2]
RECORDS = performance.read(ROOT / "docs" / performance.RESULTS / performance.ENGINES_FILE)
RECORD = {"rows": 16, "cols": 32, "lut": 20_000, "lutram": 1_000, "pairs": 4_000, "ff": 30_000, "carry8": 10.5, "bram36": 7.5,
          "dsp": 0, "array": "table", "weights": "-8..7", "lanes": 16, "depth": {"array": {"levels": 3, "carry": 48}, "fetch": {"levels": 4, "carry": 2}}, "tool": "t 1",
          "command": "c"}


def test_every_record_is_of_its_engine_s_configuration():
    assert all(performance.is_of(record, ENGINES[name]) for name, record in RECORDS.items()), "run: make bench"
    assert {"tiny4x4", "base16x16", "table64x64-w2a2"} <= set(RECORDS)
    for record in RECORDS.values():
        assert record["dsp"] == record["latches"] == 0


def test_the_page_of_verification_says_of_every_engine_what_the_records_say():
    page = (ROOT / "docs" / "verification.md").read_text().split("\n## Engines\n\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()[2:]]
    named = {name: row for row in rows for name in row[0].split(", ") if not name.endswith(".json")}
    assert named.keys() == ENGINES.keys()
    assert sum(len(row[0].split(", ")) for row in rows if not row[0].endswith(".json")) == len(ENGINES), "an engine stands in two rows"
    proofs = performance.read(ROOT / "docs" / performance.RESULTS / "equivalence.json")
    placed = [performance.read(path) for path in (ROOT / "docs" / performance.RESULTS).glob("placed-*.json")]
    for name, row in named.items():
        assert (row[2] == "[whole engine](results/equivalence.json)") == (name in proofs), name
        assert (row[3] == "yes") == (name in RECORDS), name
        rates = [f"{record['fmax_mhz']} MHz" for record in placed if record["engine"] == name]
        assert all(rate in row[4] for rate in rates) and (rates or row[4] == "no"), name
    for name, proof in proofs.items():
        assert proof["configuration"] == f"{ENGINES[name].hash:016x}", "run: python -m esbhw.equivalence"
        assert proof["proven"] and all(how.startswith("proven") for how in proof["proven"].values())


def test_block_ram_begins_or_ends_the_longest_path_of_what_was_placed():
    for path in (ROOT / "docs" / performance.RESULTS).glob("placed-*.json"):
        blocks = [block for block, *_ in performance.read(path)["critical_path"]]
        assert any(re.search(r"^memory\.memory$|accumulators\.bank", end) for end in (blocks[0], blocks[-1])), path.name


def test_the_readme_has_the_table_of_the_records():
    table = filled((ROOT / "README.md").read_text(), readme_table.MARK)
    assert table == readme_table.table(RECORDS, ROOT / "docs"), "run: make docs"
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]] == list(ENGINES), "every named engine"


def test_the_smallest_engine_is_as_its_record_says():
    tool = yosys.require()
    if RECORDS["tiny4x4"]["tool"] != f"{tool.package} {tool.version}":
        pytest.skip("the record was made with another Yosys")
    found = synthesize(ENGINES["tiny4x4"]).to_dict()
    assert {name: RECORDS["tiny4x4"][name] for name in found if name != "seconds"} == {
        name: value for name, value in found.items() if name != "seconds"}, "run: make bench"


def test_density_is_operations_a_second_over_luts():
    assert performance.gops(RECORD, 250) == 256  # 512 lanes, 2 operations, 250 MHz
    assert performance.density(RECORD, 250) == pytest.approx(12.8)  # over 20 kLUT
    assert performance.density(RECORD, 300, 16_000) == pytest.approx(19.2)
    published = {(name, bits): value for name, bits, value, _, _ in performance_page.PUBLISHED}
    assert published["BISMO", "W4A4"] == pytest.approx(13.64, abs=0.01)
    assert published["BISMO", "W2A2"] == pytest.approx(54.56, abs=0.01)


def test_the_page_has_a_row_for_each_record_and_marks_what_is_over_the_bar(tmp_path):
    performance.write_json(tmp_path / "results" / "engines.json", {"mine": RECORD})
    page = performance_page.page(tmp_path)
    row = next(line for line in page.splitlines() if line.startswith("| mine | table, 16 x 32 |"))
    assert row == ("| mine | table, 16 x 32 | -8..7 | 16 | 20,000 (1,000) | 7 | 16,000 |  | 30,000 | 10.5 | 7.5 | 0 | 256 | 12.80 | 307 | 15.36 | "
                   "19.20 | 4 | 48 |")
    assert "| array | 3 / 48 |" in page and "| fetch | 4 / 2 **over** |" in page
    assert "by simulation" not in page and "| mine | t 1 | `c` |" in page
    table = readme_table.table({"mine": RECORD}, tmp_path)
    assert table.endswith("| mine | table, 16 x 32 | -8..7 | 20,000 | 30,000 | 7.5 | 0 | 15.4 | similar | blocks | no | not run | not run |")
    older = readme_table.table({"mine": RECORD | {"earlier_rtl": True}}, tmp_path)
    assert "| mine *earlier RTL* | table, 16 x 32 |" in older, "a record from before the RTL changed says so"


def test_goals_are_reached_and_one_that_is_not_is_marked():
    assert all(goals.density_of(ENGINES[goal.engine], RECORDS[goal.engine]["lut"]) >= goal.wanted
               for goal in goals.GOALS if goal.engine in RECORDS)
    section = goals.goals_section({"table64x64": {"lut": 80_000}})
    assert "| 4,096 | 35 | table64x64 | 30.72 **missed** | 30." in section
    model = goals.density_of(ENGINES["large64x64"], area.area(ENGINES["large64x64"]).lut)
    assert f"| 17, then 24 | large64x64 | {model:.2f} *model* |" in section
    unit = goals.price(ENGINES["small8x16"], {"channel_unit": 8})
    measured = RECORDS["small8x16-channel"]["lut"] - RECORDS["small8x16"]["lut"]
    assert unit == pytest.approx(measured, rel=0.1)
    assert goals.price(ENGINES["zcu102-w4a4"], {"function_table": True}) == 0


def test_blocks_take_what_their_record_says():
    blocks = performance.read(ROOT / "docs" / performance.RESULTS / BLOCKS_FILE)
    over = [name for name, block in BLOCKS.items() if blocks[name]["lut"] > block.limit * block.count]
    assert over == ["accumulator column, digits of 2 bits"]
    assert "accumulator column, digits of 2 bits | 84 a column **over** | 75 |" in goals.blocks_section(blocks, {})
    tool = yosys.require()
    name = "accumulator column"
    if blocks[name]["tool"] == f"{tool.package} {tool.version}":
        assert measure(BLOCKS[name]).items() <= blocks[name].items(), "run: python -m esbhw.block_records"


def test_measuring_one_engine_leaves_the_records_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(performance, "measure", lambda config: {"rows": config.rows, **Resources(lut=5).to_dict()})
    path = tmp_path / "results" / "engines.json"
    performance.write_json(path, {"base16x16": RECORD, "gone": RECORD})
    performance.update(path, [ENGINES["tiny4x4"]], say=lambda text: None)
    content = performance.read(path)
    assert list(content) == ["tiny4x4", "base16x16"], "in the order of ENGINES, without what is no engine any more"
    assert content["base16x16"] == RECORD
    assert content["tiny4x4"]["lut"] == 5 and content["tiny4x4"]["command"] == "python -m esbhw.performance tiny4x4"


def test_paths_beyond_the_planning_clock_s_rule_are_named_and_fail_the_bench(tmp_path, monkeypatch, capsys):
    long = {"levels": 4, "carry": 49, "longest": "from a to b", "longest_carry": "from c to d"}
    record = {"rows": 4, "depth": {"array": {"levels": 3, "carry": 48}, "fetch": long}}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(performance, "measure", lambda config: record)
    assert performance.main(["tiny4x4"]) == 1
    assert capsys.readouterr().err.splitlines()[1:] == ["tiny4x4, fetch: from a to b", "tiny4x4, fetch: from c to d"]
    del record["depth"]["fetch"]
    assert performance.main(["tiny4x4"]) == 0


def test_an_unknown_engine_is_refused_before_anything_is_measured(capsys):
    assert performance.main(["tiny4x4", "huge"]) == 2
    assert "no engine named 'huge'; known: tiny4x4" in capsys.readouterr().err


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "engines.json").write_text("{")
    with pytest.raises(ValueError, match=r"engines\.json is not JSON .*; remove it and run `make bench`$"):
        performance.read(tmp_path / "engines.json")


@pytest.mark.parametrize("name", [name for name in ENGINES if name.split("-w")[0].split("-esb")[0] in BOARDS])
def test_engines_named_after_a_board_fit_it(name):
    board, config = BOARDS[name.split("-w")[0].split("-esb")[0]], ENGINES[name]
    assert len(masters(config)) <= len(board.memory_ports)
    if board.target != "xilinx":
        return  # the model counts primitives of UltraScale+
    found, share = area.area(config), 0.7 if board.name == "zcu102" else 1 - area.area(config).error
    assert found.lut <= share * board.device.lut and found.ff <= share * board.device.ff
    assert found.bram36 <= share * board.device.bram


def test_the_page_lists_every_engine_and_marks_the_model_s_figures(tmp_path):
    page = performance_page.page(tmp_path)
    for name in ENGINES:
        assert any(line.startswith(f"| {name} |") and "*model*" in line for line in page.splitlines()), name
    assert "| zcu102-w2a2 | table, 128 x 128 | multiply | -2..1 | 2 | 1 |" in page


def test_the_picture_has_a_point_for_each_size_and_says_which_are_measured():
    found = performance_picture.points(RECORDS)
    assert len(found) == 8 and all(len(line) == 5 for line in found.values())
    assert any(measured for line in found.values() for _, _, measured in line)
    for array in ("shiftadd", "table"):
        for four, eight in zip(found[array, "W4A4"], found[array, "W8A8"]):
            assert eight[1] == pytest.approx(four[1] / 4)
    text = performance_picture.picture({})
    assert text.count('fill="white"><title>') == 40 and "by the model" in text
