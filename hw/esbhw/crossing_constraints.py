"""engine_crossings.xdc: bounds on every wire from one clock of an engine to the other.

Vivado reads it scoped to the engine, after the clocks of the design around it. No other path may lead from one clock to the
other: what is not named here is timed as it stands, fails, and is found. The proof (esbhw.crossing_proof) rests on what is
asked for here: no two bits of a pointer are on their way at a time, and an item has come before its pointer.
"""

from esbflow.engine_config import EngineConfig
from esbhw.engine.two_clocks import channels
from esbhw.interfaces import CLOCK, COMPUTE_CLOCK

FILE = "engine_crossings.xdc"
PORTS = {"bus": CLOCK, "compute": COMPUTE_CLOCK}


def constraints(config: EngineConfig, compute_mhz: int) -> str:
    """The text of the file, for buses at `config.clock_mhz`.

    A pointer may take the shorter of the two periods, and so may the skew of its bits; an item a period of the clock that
    takes it, which is three times before its pointer. Of a register by itself any delay is right.
    """
    periods = {"bus": 1000 / config.clock_mhz, "compute": 1000 / compute_mhz}
    shorter = f"{min(periods.values()):.3f}"
    lines = [f"# {config.module_name}: from clock to clock, at {config.clock_mhz} MHz ({CLOCK}) and {compute_mhz} MHz "
             f"({COMPUTE_CLOCK}).", "# Written for Vivado, which had no part in it."]
    for name, source, _, _ in channels(config):
        sink = "compute" if source == "bus" else "bus"
        lines.append(f"# {name}")
        for pointer in ("write_gray", "read_gray"):
            ends = f"-from [get_cells {{{name}/{pointer}_reg[*]}}] -to [get_cells {{{name}/{pointer}_meta_reg[*]}}]"
            lines += [f"set_max_delay -datapath_only {ends} {shorter}", f"set_bus_skew {ends} {shorter}"]
        clock = f"[get_clocks -of_objects [get_ports {PORTS[source]}]]"
        lines.append(f"set_max_delay -datapath_only -from {clock} -to [get_cells {{{name}/o__payload_reg[*]}}] "
                     f"{periods[sink]:.3f}")
    lines.append("# single registers")
    lines += [f"set_false_path -to [get_cells {cell}_reg]"
              for cell in ("irq_crossing/level_meta", "reset_crossing/request_meta", "reset_crossing/answer_meta")]
    return "\n".join([*lines, ""])
