"""Programs of the parts of a graph, in one file with the graph itself."""

import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.errors import reason
from esbflow.files import whole
from esbflow.graph import file, ir
from esbflow.graph.bounds import check
from esbflow.runtime.errors import ProgramError
from esbflow.runtime.program_file import load_program
from esbflow.split.partition import split

FORMAT, VERSION = "esbflow split program", 1


@dataclass(frozen=True, eq=False)
class SplitProgram:
    """`programs` are those of the parts of `graph` that run on the engine, in order."""

    graph: ir.Graph
    config: EngineConfig
    batch: int
    parts: list
    programs: list

    @property
    def meta(self) -> dict:
        """What reports ask of a program, of all of them."""
        layers = [layer for program in self.programs for layer in program.meta["layers"]]
        return {"name": self.graph.name, "batch": self.batch, "stripes": False, "layers": layers}

    def save(self, path) -> Path:
        """Write the file, whole or not at all."""
        about = {"format": FORMAT, "version": VERSION, "engine": self.config.to_dict(), "batch": self.batch}
        with tempfile.TemporaryDirectory() as folder, whole(path) as temporary:
            parts = [file.save(self.graph, Path(folder) / "graph.npz")]
            parts += [program.save(Path(folder) / f"{i}.npz") for i, program in enumerate(self.programs)]
            with zipfile.ZipFile(temporary, "w") as archive:
                archive.writestr("split.json", json.dumps(about))
                for part in parts:
                    archive.write(part, part.name)
        return Path(path)


def compile_split(graph: ir.Graph, config: EngineConfig, batch: int = 1, channels_last: bool = False):
    """The program of a graph that the engine can run alone; else a SplitProgram.

    channels_last : as compile_graph has it; only a graph that the engine can run alone takes such images.

    Raises
    ------
    GraphError, CompileError
        if a part does not fit the engine.
    """
    split_graph, parts = split(graph, config)
    if len(parts) == 1 and parts[0].graph is not None:
        check(graph, config.accumulator_width)
        return compile_graph(graph, config, batch, channels_last=channels_last)
    if channels_last:
        raise CompileError(f"the host has a share of {graph.name} and takes images (n, c, h, w) only; leave channels_last "
                           "out")
    for part in parts:
        if part.graph is not None:
            check(part.graph, config.accumulator_width)
    programs = [compile_graph(part.graph, config, batch, stripes=False) for part in parts if part.graph is not None]
    return SplitProgram(split_graph, config, batch, parts, programs)


def is_split(path) -> bool:
    """Whether a file is one that SplitProgram.save wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("split.json"))["format"] == FORMAT
    except Exception:  # whatever a damaged archive raises: whoever reads it next says what is wrong with it
        return False


def load_split(path) -> SplitProgram:
    """Read a file that SplitProgram.save wrote.

    Raises
    ------
    ProgramError
        if it is not whole, or of another version.
    """
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            about = json.loads(archive.read("split.json"))
            if about["version"] != VERSION:
                raise ProgramError(f"{path} has version {about['version']} and this program reads {VERSION}; compile the "
                                   "network again")
            config = EngineConfig.from_dict(about["engine"])
            graph, parts = split(file.load(archive.extract("graph.npz", folder)), config)
            count = sum(part.graph is not None for part in parts)
            programs = [load_program(archive.extract(f"{i}.npz", folder)) for i in range(count)]
            return SplitProgram(graph, config, int(about["batch"]), parts, programs)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ProgramError(f"{path} is not a whole program file ({reason(error)}); compile the network again") from None
