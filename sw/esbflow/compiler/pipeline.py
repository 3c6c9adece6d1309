"""The compiler: named passes from an integer graph to a program for one engine and one batch size."""

from esbflow.compiler.compilation import Compilation
from esbflow.compiler.errors import CompileError
from esbflow.compiler.passes import run
from esbflow.compiler.program import Program
from esbflow.engine_config import EngineConfig
from esbflow.graph.ir import Graph

BATCH_LIMIT = 256


def compile_graph(graph: Graph, config: EngineConfig, batch: int = 1, fold: bool = True,
                  packing: dict | None = None, stripes: bool | None = None, raw: bool = True,
                  channels_last: bool = False) -> Program:
    """Compile for runs of `batch` images. An engine of several slices shares them out: each slice has as many, and the
    program is that of one slice. Or, on an engine with stripes, all slices work on stripes of one image after the other.

    It carries out the passes of passes.py, which docs/program.md lists.

    packing : {tensor: pixels in a word}; by default what takes the fewest cycles, and nothing without `fold`.
    stripes : whether slices work on stripes of one image; by default what takes fewer cycles.
    raw : on an engine with an image buffer, whether the load unit makes the first layer's map from raw pixels where it can.
    channels_last : images are (n, h, w, c) arrays, and not (n, c, h, w).

    Raises
    ------
    CompileError
        if the graph does not fit the engine; the sentence names the layer and the nearest fix.
    """
    if not 1 <= batch <= BATCH_LIMIT:
        raise CompileError(f"batch must be in 1..{BATCH_LIMIT}, not {batch}")
    if stripes and not config.stripes:
        raise CompileError(f"engine {config.name} is built without stripes of an image (stripes = false); use an engine "
                           "with them, or a batch of images")
    if packing is None and not fold:
        packing = {}
    return run(Compilation(graph, config, batch, fold, packing, stripes, raw, channels_last)).program
