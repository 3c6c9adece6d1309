"""engine.json: what belongs beside engine.v and beside a bitstream, for compiler and driver."""

from esbflow import registers
from esbflow.engine_config import INTERFACE_VERSION, EngineConfig


def manifest(config: EngineConfig, target: str = "xilinx") -> dict:
    """The configuration and the registers, generated, never retyped."""
    return {
        "interface_version": INTERFACE_VERSION,
        "vlnv": registers.vlnv(config),
        "module": config.module_name,
        "config": config.to_dict(),
        "target": target,
        "hash": f"{config.hash:016x}",
        "registers": {register.name: register.offset for register in registers.REGISTERS.values()},
    }
