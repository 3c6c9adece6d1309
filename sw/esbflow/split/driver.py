"""Runs a split network by one call: programs on the engine, and the host between them."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from esbflow.graph.execute import compute
from esbflow.maps import as_maps
from esbflow.runtime.engine import Engine, Result
from esbflow.runtime.errors import InputError, ProgramError
from esbflow.split.program import SplitProgram, is_split, load_split


@dataclass(frozen=True, eq=False)
class SplitResult(Result):
    """A Result; `parts` says of each part, in order, `where` it ran ("engine" or "host"), its `name`, `operator`, `why` the
    host ran it, `seconds` of wall time and engine `cycles`, both of all images."""

    parts: Any = None


class SplitEngine:
    """A driver's engine that also takes split programs. Every program stays loaded, in a driver of its own.

        engine = SplitEngine(driver)
        engine.load("net.npz")            # what `esbflow compile` wrote, split or not
        result = engine.run(images)
        result.outputs, result.parts
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._drivers: list = []
        self._program: Any = None

    def load(self, program) -> None:
        """Load a program, split or not, or the file of one; raises what Engine.load raises."""
        if not hasattr(program, "meta"):
            program = load_split(program) if is_split(program) else program
        self.unload()
        if not isinstance(program, SplitProgram):
            self._engine.load(program)
        else:
            for number, part in enumerate(program.programs):
                driver = self._engine.another() if number else self._engine
                driver.load(part)
                self._drivers.append(driver)
        self._program = program

    def unload(self) -> None:
        """Free the memory of all programs."""
        for driver in self._drivers or [self._engine]:
            driver.unload()
        self._drivers, self._program = [], None

    def run(self, images: np.ndarray, progress=None, deadline_cycles: int | None = None) -> Result:
        """As Engine.run. `deadline_cycles` is of one run of one program; `progress` is told of images that are done in full.

        Raises
        ------
        ProgramError
            if nothing is loaded. Else what Engine.run raises.
        """
        if self._program is None:
            raise ProgramError("no program is loaded; call load() first")
        if not isinstance(self._program, SplitProgram):
            return self._engine.run(images, progress, deadline_cycles)
        graph, images = self._program.graph, np.asarray(images)
        if images.dtype != np.uint8 or len(images) == 0:
            raise InputError(f"images must be uint8 and at least one, not {images.dtype} of shape {images.shape}")
        images = as_maps(images, graph.input.shape, InputError)
        values = {graph.input.name: compute(graph, graph.input, images)}
        drivers, said, runs = iter(self._drivers), [], []
        for part in self._program.parts:
            began = time.perf_counter()
            if part.node is not None:
                values[part.node.name] = compute(graph, part.node, images, *(values[name] for name in part.node.inputs))
                entry = {"where": "host", "name": part.node.name, "operator": type(part.node).__name__, "why": part.why,
                         "cycles": 0}
            else:
                given = images if part.source is None else (values[part.source] & 255).astype(np.uint8)
                result = next(drivers).run(given, None, deadline_cycles)
                runs.append(result)
                values |= result.outputs if part.graph.outputs else {part.graph.output.name: result.outputs}
                entry = {"where": "engine", "name": part.graph.name, "operator": f"layers: {len(result.layers[0])}",
                         "why": "", "cycles": result.cycles}
            said.append({**entry, "seconds": time.perf_counter() - began})
        if progress:
            progress(len(images))
        outputs: Any = {name: values[node.name] for name, node in graph.results.items()}
        scales: Any = {name: float(node.scale) for name, node in graph.results.items()}
        if not graph.outputs:
            outputs, scales = next(iter(outputs.values())), next(iter(scales.values()))
        layers = [[layer for run in runs for layer in run.layers[i]] for i in range(len(runs[0].layers) if runs else 0)]
        return SplitResult(outputs, layers, sum(run.cycles for run in runs), len(layers), scales, said)
