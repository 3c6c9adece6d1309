"""Elaborated engines are kept, and never after anything that they depend on has changed."""

import subprocess
import sys

import pytest

from esbflow.engine_config import EngineConfig
from esbflow.engines import engine
from esbhw import cache, generate

TINY = engine("tiny4x4")
LOADED = """
import sys, esbhw.generate
from pathlib import Path
from esbhw.cache import sources
esbhw.generate.elaborate_top(esbhw.generate.EngineConfig("e", 4, 4), esbhw.generate.Target("xilinx"))
names = {Path(m.__file__).resolve() for n, m in sys.modules.items() if n.split(".")[0] in ("esbflow", "esbhw") and m.__file__}
print(*sorted(names - {path.resolve() for path in sources()}))
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("ESBFLOW_CACHE", str(tmp_path))
    calls = []

    def make():
        calls.append(1)
        return "text"

    return make, calls


def test_a_text_is_made_once(made, tmp_path):
    make, calls = made
    assert [cache.elaborated("rtlil", TINY, "generic", make) for _ in range(2)] == ["text"] * 2 and len(calls) == 1
    assert len([*(tmp_path / "elaborated").iterdir()]) == 1


def test_it_is_made_again_for_all_that_it_depends_on(made, monkeypatch, tmp_path):
    make, calls = made
    other = EngineConfig(**{**TINY.to_dict(), "clock_mhz": 99})  # stands in engine.v
    for kind, config, target in (("rtlil", TINY, "generic"), ("verilog", TINY, "generic"), ("rtlil", TINY, "xilinx"),
                                 ("rtlil", other, "generic")):
        cache.elaborated(kind, config, target, make)
    assert len(calls) == 4
    (tmp_path / "changed.py").write_text("")
    monkeypatch.setattr(cache, "sources", lambda: [tmp_path / "changed.py"])
    cache.sources_hash.cache_clear()
    try:
        cache.elaborated("rtlil", TINY, "generic", make)
    finally:
        cache.sources_hash.cache_clear()
    assert len(calls) == 5


def test_a_damaged_text_is_made_again(made, tmp_path):
    make, calls = made
    cache.elaborated("rtlil", TINY, "generic", make)
    [path] = (tmp_path / "elaborated").iterdir()
    for content in (b"", path.read_bytes()[:-3], path.read_bytes()[:12] + b"x" * 20, b"garbage"):
        path.write_bytes(content)
        assert cache.elaborated("rtlil", TINY, "generic", make) == "text"
    assert len(calls) == 5


def test_without_a_folder_to_write_to_it_is_made_each_time(made, monkeypatch, tmp_path):
    make, calls = made
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ESBFLOW_CACHE", str(tmp_path / "file"))
    assert [cache.elaborated("rtlil", TINY, "generic", make) for _ in range(2)] == ["text"] * 2 and len(calls) == 2


def test_what_is_kept_is_what_amaranth_gives(monkeypatch, tmp_path):
    monkeypatch.setenv("ESBFLOW_CACHE", str(tmp_path))
    generate.rtlil.cache_clear()
    first = generate.rtlil(TINY)
    generate.rtlil.cache_clear()
    assert generate.rtlil(TINY) == first == generate._elaborate(TINY, generate.Target("generic"), False)


def test_every_module_that_an_elaboration_reads_is_a_source():
    """Those of esbflow that importing esbhw loads, too."""
    result = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
