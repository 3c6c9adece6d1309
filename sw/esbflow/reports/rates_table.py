"""The table of rates in docs/networks.md: frames a second at the planning clock on ideal memory and on DDR, what the driver
makes of them, and what they are compared with. lanes_table.py fills it in.
"""

from esbflow.compiler.ddr_cycles import SharedCycleModel
from esbflow.compiler.program import Program
from esbflow.compiler.shared_memory import DDR_BYTES, channels
from esbflow.errors import BadValue
from esbflow.reports.large_engines import LATENCY, plan_of, program_of

MARK = "table of rates"
HEAD = ("| network | engine | batch | frames/s | bytes a cycle | use % | on DDR: frames/s | use % | latency, ms | "
        "host, ms a batch | with the driver, images/s | published, INT8, routed, measured |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
RECORD = "driver-rate.json"
"""Of `python -m sim.benches.driver_rate`, in docs/results."""
PLANNING_MHZ = 300
ROWS = (("resnet18", "zcu102-w4a4", 4), ("resnet18", "table64x64-w4", 1), ("resnet18", "table64x64-w4-slices2", 8),
        ("resnet18", "table64x64-w4-slices4", 4), ("mobilenet-v2", "zcu102-w4a4", 4),
        ("mobilenet-v2", "table32x32-w4-slices4", 4), ("resnet20", "table16x16-w4-slices16", 16))
PUBLISHED = {"resnet18": 499, "mobilenet-v2": 707, "resnet20": 7601}
"""Frames a second; docs/networks.md says whose."""


class _Moving(SharedCycleModel):
    """Counts the beats that go to memory."""

    beats = 0

    def run(self):
        add = self._memory.add

        def counted(channel, due, beats, done, note=None, on_chip=False):
            self.beats += 0 if on_chip else beats
            add(channel, due, beats, done, note, on_chip)

        self._memory.add = counted
        return super().run()


def bytes_per_cycle(network: str, name: str, batch: int) -> float:
    """What all ports together move a cycle on ideal memory: on one with room for a beat of every port."""
    return moved(program_of(network, name, batch))


def moved(program: Program) -> float:
    """The same of a program."""
    model = _Moving(program.config, program.words, LATENCY, 16 * len(channels(program.config)))
    cycles = model.run().total
    return 16 * model.beats / cycles


def row(network: str, name: str, batch: int, driver: dict) -> str:
    """One line; `driver`: the row's run of RECORD.

    Raises
    ------
    BadValue
        if the driver was measured with other cycles than the model's today.
    """
    ideal, shared = plan_of(network, name, batch), plan_of(network, name, batch, DDR_BYTES)
    cycles = shared["cycles_per_image"] * batch
    if driver["cycles"] != round(cycles):
        raise BadValue(f"{RECORD} has {driver['cycles']} cycles of {network} on {name}, and the model {cycles:.0f}; measure "
                       f"anew: python -m sim.benches.driver_rate --record docs/results/{RECORD}")
    rates = [1e6 * PLANNING_MHZ / plan["cycles_per_image"] for plan in (ideal, shared)]
    return (f"| {network} | `{name}` | {batch} | {rates[0]:,.0f} | {bytes_per_cycle(network, name, batch):.0f} | "
            f"{100 * ideal['utilization']:.1f} | {rates[1]:,.0f} | {100 * shared['utilization']:.1f} | "
            f"{cycles / (1e3 * PLANNING_MHZ):.2f} | {driver['host_ms']:.2f} | {driver['end_to_end']:,.0f} | "
            f"{PUBLISHED[network]:,} |")


def table(runs: list) -> str:
    """All lines. `runs` are those of RECORD."""
    found = {(run["network"], run["engine"], run["batch"]): run for run in runs}
    return "\n".join([HEAD, *(row(*entry, found[entry]) for entry in ROWS)])
