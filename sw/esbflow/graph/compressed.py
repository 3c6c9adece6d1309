"""Inference from codebooks: weights stay indices and codewords; a layer's are gathered when it runs. NumPy only."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from esbflow.graph import ir
from esbflow.graph.codebooks import Codebook, codebook_of
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import compute
from esbflow.graph.file import book_of, load
from esbflow.maps import as_maps


class CodebookNetwork:
    """A graph whose weights are codebooks, where those are smaller; `run` gives what `execute` gives, integer for integer.

    books : {name of a node: its Codebook}. Other nodes keep their weights.
    """

    def __init__(self, graph: ir.Graph, books: dict[str, Codebook]):
        self.books = books
        # A zero that is seen everywhere, in place of weights: shapes stay known and take no memory.
        self.graph = replace(graph, nodes=[_without_weights(node) if node.name in books else node for node in graph.nodes])

    @classmethod
    def of(cls, graph: ir.Graph) -> "CodebookNetwork":
        """Of a graph in memory."""
        found = {node.name: codebook_of(node.weight) for node in graph.nodes if isinstance(node, (ir.Conv2d, ir.Linear))}
        return cls(graph, {name: book for name, book in found.items() if book is not None})

    @classmethod
    def load(cls, path) -> "CodebookNetwork":
        """Of a file that `save(graph, path, codebooks=True)` wrote; raises GraphError as `load` does."""
        graph, books = load(path), {}
        with np.load(path, allow_pickle=False) as arrays:
            nodes = json.loads(arrays["meta"].tobytes().decode())["nodes"]
            for i, entry in enumerate(nodes):
                if isinstance(entry.get("weight"), dict) and "codebook" in entry["weight"]:
                    books[entry["name"]] = book_of(i, entry["weight"]["codebook"], arrays)
        return cls(graph, books)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are held: codewords and indices, or a byte a weight."""
        own = sum(node.weight.size for node in self.graph.nodes
                  if isinstance(node, (ir.Conv2d, ir.Linear)) and node.name not in self.books)
        return own + sum(book.nbytes for book in self.books.values())

    def run(self, images: np.ndarray) -> Any:
        """The outputs for uint8 images (n, c, h, w), as `execute` has them; raises GraphError for other images."""
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise GraphError(f"images must be uint8, not {images.dtype}")
        images = as_maps(images, self.graph.input.shape, GraphError)
        values: dict[str, np.ndarray] = {}
        for node in self.graph.nodes:
            if node.name in self.books:
                node = replace(node, weight=self.books[node.name].weights().astype(np.int16))  # |-128|
            values[node.name] = compute(self.graph, node, images, *(values[name] for name in node.inputs))
        outputs = {name: values[node.name] for name, node in self.graph.results.items()}
        return outputs if self.graph.outputs else outputs[self.graph.output.name]


def _without_weights(node: Any) -> ir.Node:
    return replace(node, weight=np.broadcast_to(np.int8(0), node.weight.shape))
