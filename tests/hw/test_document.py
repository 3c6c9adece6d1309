from pathlib import Path

import pytest

from esbflow import instructions
from esbhw import document

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", document.PAGES)
def test_the_committed_pages_are_what_the_tables_say(name):
    assert (DOCS / name).read_text() == document.PAGES[name](), "run: python -m esbhw.document docs"


def test_every_explained_field_exists():
    for opcode, meanings in document.MEANINGS.items():
        assert set(meanings) <= set(instructions.layout(opcode)), opcode


def test_writing_the_pages_makes_the_folder(tmp_path):
    document.main(str(tmp_path / "docs"))
    assert {path.name for path in (tmp_path / "docs").iterdir()} == set(document.PAGES)
