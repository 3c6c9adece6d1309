"""Saves and loads integer graphs: one .npz without pickle, versioned, written to a temporary name and renamed."""

import dataclasses
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from esbflow.errors import reason
from esbflow.files import whole
from esbflow.graph import ir
from esbflow.graph.codebooks import Codebook, codebook_of
from esbflow.graph.doubts import doubts, warn
from esbflow.graph.errors import GraphError
from esbflow.graph.host import HOST_OPERATORS
from esbflow.graph.validate import validate
from esbflow.numbers import Format

FORMAT = "esbflow graph"
VERSION = 1
DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile,
          zlib.error, struct.error)
"""What zipfile, NumPy and the nodes' constructors raise on a file that is cut or changed."""


def save(graph: ir.Graph, path, codebooks: bool = False) -> Path:
    """Write the graph; nothing is left behind if it fails. With `codebooks` weights of few different blocks, as product
    quantization leaves them, are codewords and indices of whole bytes; `load` reads both kinds of file.

    Raises
    ------
    GraphError
        if the graph is not well formed.
    """
    validate(graph)
    path = Path(path)
    arrays, nodes = {}, []
    for i, node in enumerate(graph.nodes):
        entry: dict = {"operator": type(node).__name__}
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if codebooks and field.name == "weight" and value.dtype.kind in "iu" and (book := codebook_of(value)):
                arrays[f"{i}.codewords"], arrays[f"{i}.indices"] = book.codewords, book.indices
                entry[field.name] = {"codebook": list(book.shape)}
            elif isinstance(value, np.ndarray):
                arrays[f"{i}.{field.name}"] = _smallest(value)
                entry[field.name] = {"array": True}
            elif isinstance(value, ir.Requantizer):
                for name in "mnbs":
                    arrays[f"{i}.{field.name}.{name}"] = np.asarray(getattr(value, name), dtype=np.int64)
                entry[field.name] = {"requantizer": True}
            elif isinstance(value, Format):
                entry[field.name] = {"format": str(value)}
            elif isinstance(value, tuple):
                entry[field.name] = {"tuple": [int(v) if isinstance(v, np.integer) else v for v in value]}
            else:
                entry[field.name] = value.item() if isinstance(value, np.generic) else value
        nodes.append(entry)
    meta = {"format": FORMAT, "version": VERSION, "name": graph.name, "info": graph.info, "nodes": nodes}
    if graph.outputs:
        meta["outputs"] = graph.outputs
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def _smallest(array: np.ndarray) -> np.ndarray:
    """Integers in the smallest type that holds them."""
    if array.dtype.kind not in "iu":
        return array
    for kind in (np.int8, np.int16, np.int32):
        limits = np.iinfo(kind)
        if array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max):
            return array.astype(kind)
    return array.astype(np.int64)


def load(path) -> ir.Graph:
    """Read a graph. What it was hardly meant to be is said in a GraphWarning (see doubts.py).

    Raises
    ------
    GraphError
        if the file is missing, truncated, not a graph, of another version, or not well formed.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:  # type: ignore[arg-type]
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays["meta"].tobytes().decode())
    except FileNotFoundError:
        raise GraphError(f"there is no model file {path}; make one with `esbflow train` or `esbflow export`") from None
    except DAMAGE as error:
        raise GraphError(f"{path} is not a whole model file ({reason(error)}); export the model again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise GraphError(f"{path} is not a model file; make one with `esbflow export`")
    if meta.get("version") != VERSION:
        raise GraphError(f"{path} has model version {meta.get('version')} and this program reads {VERSION}; "
                         "export the model again")
    try:
        graph = ir.Graph(meta["name"], info=meta["info"], outputs=meta.get("outputs", {}))
        for i, entry in enumerate(meta["nodes"]):
            graph.nodes.append(_node(i, dict(entry), arrays))
        validate(graph)
    except GraphError:
        raise
    except DAMAGE as error:
        raise GraphError(f"{path} is not a whole model file ({error}); export the model again") from None
    warn(doubts(graph))
    return graph


def book_of(i: int, shape: list, arrays) -> Codebook:
    """The codebook of node number i, as `save` wrote it."""
    return Codebook(tuple(shape), arrays[f"{i}.codewords"], arrays[f"{i}.indices"])


def _node(i: int, entry: dict, arrays: dict) -> ir.Node:
    cls = (ir.OPERATORS | HOST_OPERATORS)[entry.pop("operator")]
    fields = {}
    for name, value in entry.items():
        if isinstance(value, dict) and value.get("codebook"):
            value = book_of(i, value["codebook"], arrays).weights().astype(np.int64)
        elif isinstance(value, dict) and value.get("array"):
            value = arrays[f"{i}.{name}"]
            if value.dtype.kind in "iu":
                value = value.astype(np.int64)
        elif isinstance(value, dict) and value.get("requantizer"):
            value = ir.Requantizer(**{key: arrays[f"{i}.{name}.{key}"] for key in "mnbs"})
        elif isinstance(value, dict) and "format" in value:
            value = Format.parse(value["format"])
        elif isinstance(value, dict) and "tuple" in value:
            value = tuple(value["tuple"])
        fields[name] = value
    return cls(**fields)
