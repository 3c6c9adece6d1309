"""engine.json: what belongs beside engine.v and beside a bitstream, for compiler and driver."""

from esbflow import registers
from esbflow.engine_config import INTERFACE_VERSION, EngineConfig


def manifest(config: EngineConfig, target: str = "xilinx", compute_mhz: int | None = None) -> dict:
    """The configuration and the registers, generated, never retyped.

    `compute_mhz` : of the compute clock, if it is another than the buses' `clock_mhz`; no program depends on it.
    """
    return {
        "interface_version": INTERFACE_VERSION,
        "vlnv": registers.vlnv(config),
        "module": config.module_name,
        "config": config.to_dict(),
        "target": target,
        "hash": f"{config.hash:016x}",
        **({"compute_clock_mhz": compute_mhz} if compute_mhz else {}),
        "registers": {register.name: register.offset for register in registers.REGISTERS.values()},
    }
