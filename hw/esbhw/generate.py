"""From an EngineConfig to RTL: `engine.v` and `engine.json`."""

from functools import lru_cache
from pathlib import Path

from amaranth.back import rtlil as back_rtlil

from esbflow import registers
from esbflow.engine_config import INTERFACE_VERSION, EngineConfig
from esbflow.files import write_json, write_whole
from esbhw import to_verilog
from esbhw.engine.engine import Engine
from esbhw.target import Target

TOP = "esb_engine"


@lru_cache(maxsize=4)
def rtlil(config: EngineConfig, target: str = "generic") -> str:
    """The engine as Yosys RTLIL, hierarchical; what simulation and synthesis start from."""
    chosen = Target(target)
    return elaborate_top(config, chosen) + elaborate_definitions(chosen)


def elaborate_top(config: EngineConfig, target: Target) -> str:
    """RTLIL of all modules of an engine that are not shared."""
    engine = Engine(config)
    return back_rtlil.convert(engine, name=TOP, platform=target, ports=engine.ports, emit_src=False)


def elaborate_definitions(target: Target) -> str:
    """RTLIL of the modules that a design shares, each once, those that they share included."""
    texts = []
    done = set()
    while len(done) < len(target.definitions):
        for module, component in [*target.definitions.items()]:
            if module not in done:
                done.add(module)
                text = back_rtlil.convert(component, name=module, platform=target, emit_src=False)
                texts.append(text.replace("attribute \\top 1\n", ""))
    return "".join(texts)


def verilog(config: EngineConfig, target: str = "generic") -> str:
    """The engine as plain Verilog; what goes to Vivado, and (generic) what the engine's benches simulate."""
    return to_verilog.verilog(rtlil(config, target), TOP)


def manifest(config: EngineConfig, target: str = "xilinx") -> dict:
    """What belongs beside engine.v: the configuration and the registers, generated, never retyped."""
    return {
        "interface_version": INTERFACE_VERSION,
        "vlnv": registers.VLNV,
        "config": config.to_dict(),
        "target": target,
        "hash": f"{config.hash:016x}",
        "registers": {register.name: register.offset for register in registers.REGISTERS.values()},
    }


def write(config: EngineConfig, folder: Path, target: str = "xilinx") -> list:
    """Write engine.v of a target and engine.json into `folder` (made if missing). Returns the paths."""
    folder = Path(folder)
    return [write_whole(folder / "engine.v", verilog(config, target)),
            write_json(folder / "engine.json", manifest(config, target))]
