"""From an EngineConfig to RTL: `engine.v` and `engine.json`."""

import os
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("AMARANTH_USE_YOSYS", "builtin")  # an old system Yosys would be picked otherwise

from amaranth.back import rtlil as back_rtlil  # noqa: E402
from amaranth.back import verilog as back_verilog  # noqa: E402

from esbflow import registers  # noqa: E402
from esbflow.engine_config import INTERFACE_VERSION, EngineConfig  # noqa: E402
from esbflow.files import write_json, write_whole
from esbhw.engine.engine import Engine  # noqa: E402

TOP = "esb_engine"


@lru_cache(maxsize=4)
def rtlil(config: EngineConfig) -> str:
    """The engine as Yosys RTLIL, hierarchical; what simulation and synthesis start from."""
    engine = Engine(config)
    return back_rtlil.convert(engine, name=TOP, ports=engine.ports, emit_src=False)


def verilog(config: EngineConfig) -> str:
    """The engine as plain Verilog; what goes to Vivado."""
    engine = Engine(config)
    return back_verilog.convert(engine, name=TOP, ports=engine.ports, emit_src=False, strip_internal_attrs=True)


def manifest(config: EngineConfig) -> dict:
    """What belongs beside engine.v: the configuration and the registers, generated, never retyped."""
    return {
        "interface_version": INTERFACE_VERSION,
        "vlnv": registers.VLNV,
        "config": config.to_dict(),
        "hash": f"{config.hash:016x}",
        "registers": {register.name: register.offset for register in registers.REGISTERS.values()},
    }


def write(config: EngineConfig, folder: Path) -> list:
    """Write engine.v and engine.json into `folder` (made if missing). Returns the paths."""
    folder = Path(folder)
    return [write_whole(folder / "engine.v", verilog(config)), write_json(folder / "engine.json", manifest(config))]
