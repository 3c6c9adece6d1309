"""From an EngineConfig to RTL: `engine.v` and `engine.json`."""

from pathlib import Path

from amaranth.back import rtlil as back_rtlil

from esbflow import registers
from esbflow.engine_config import INTERFACE_VERSION, EngineConfig
from esbflow.files import write_json, write_whole
from esbhw import yosys
from esbhw.engine.engine import Engine

TOP = "esb_engine"


def rtlil(config: EngineConfig) -> str:
    """The engine as Yosys RTLIL, hierarchical; what simulation and synthesis start from."""
    engine = Engine(config)
    return back_rtlil.convert(engine, name=TOP, ports=engine.ports, emit_src=False)


def verilog(config: EngineConfig) -> str:
    """The engine as plain Verilog; what goes to Vivado, and what the engine's benches simulate."""
    return yosys.verilog(rtlil(config), TOP)


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
