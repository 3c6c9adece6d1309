"""What a network will do on an engine, before anything runs: the exact cycle model, and resources."""

from fractions import Fraction

from esbflow.area import Area
from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.ddr_cycles import count_shared_cycles
from esbflow.compiler.images import said_of_input
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.program import Program
from esbflow.engine_config import EngineConfig
from esbflow.graph.ir import Graph
from esbflow.reports.lost import lost_cycles, network_total

REASONS = {
    "compute": "compute", "instruction": "instruction fetch", "weights": "weight loads",
    "activations": "activation loads", "accumulators": "requantizer",
}


def estimate(graph: Graph, config: EngineConfig, batch: int = 1, latency: int = 40, resources=None,
             program: Program | None = None, bandwidth: Fraction | float | None = None) -> dict:
    """Cycles per layer, rates at config.clock_mhz, and density where `resources` are given: those of open synthesis
    (esbhw.synthesis.Resources) or of the model (esbflow.area.Area), whose error is `area_error` then.

    `gops_peak` is 2 * lanes * clock, `gops` counts useful multiply-accumulates only. Cycles are the cycle model's, for
    memory of `latency` cycles: ideal, or with `bandwidth` one whose ports together move so many bytes a cycle
    (docs/simulation.md#memory). `lost` says of each layer and the whole where the cycles went that no
    multiply-accumulate needed (reports/lost.py); they add up to all the others. The clock is the
    configuration's statement, not a routed result.
    """
    program = program or compile_graph(graph, config, batch)
    batch = program.meta["batch"]
    own_rounds = config.rounds(batch, program.meta.get("stripes", False))
    ideal = count_cycles(program, latency)
    cycles = ideal if bandwidth is None else count_shared_cycles(program, latency, bandwidth)
    layers = []
    for number, (meta, spent, least) in enumerate(zip(program.meta["layers"], cycles.per_layer, ideal.per_layer)):
        split = cycles.layers.get(number, {"compute": 0})
        lanes = config.macs_per_cycle * spent
        lost = lost_cycles(meta, ideal.layers.get(number, {"compute": 0}), least, config, batch, own_rounds)
        lost["bandwidth"] = spent - least
        layers.append({
            "name": meta["name"], "op": meta["op"], "macs": meta["macs"], "cycles": spent / batch,
            "utilization": meta["macs"] * batch / lanes if lanes else 0.0,
            "limit": REASONS[max(REASONS, key=lambda reason: split.get(reason, 0))],
            "cycles_by_reason": {reason: value / batch for reason, value in split.items()},
            "lost": {reason: value / batch for reason, value in lost.items()},
        })
    macs = sum(layer["macs"] for layer in layers)
    per_image = cycles.total / batch
    seconds = per_image / (config.clock_mhz * 1e6)
    result = {
        "model": graph.name, "engine": config.name, "batch": batch, "input": said_of_input(program),
        "clock_mhz": config.clock_mhz,
        "memory_latency": latency, "memory_bytes_per_cycle": None if bandwidth is None else float(bandwidth),
        "macs_per_image": macs, "cycles_per_image": per_image,
        "utilization": macs / (per_image * config.macs_per_cycle),
        "frames_per_second": 1 / seconds, "gops": 2 * macs / seconds / 1e9,
        "gops_peak": 2 * config.macs_per_cycle * config.clock_mhz / 1e3,
        "layers": layers, "lost": network_total(layers, per_image), "program_bytes": int(program.instructions.nbytes),
        "weight_bytes": int(program.weights.nbytes),
    }
    if resources is not None:
        if isinstance(resources, Area):
            result.update(area_error=resources.error, area=resources.blocks)
        else:
            result.update(resources=resources.to_dict())
        result.update(lut=resources.lut, ff=resources.ff, bram=resources.bram36,
                      dsp=resources.dsp, gops_per_klut=result["gops"] / (resources.lut / 1e3),
                      gops_peak_per_klut=result["gops_peak"] / (resources.lut / 1e3))
    return result
