"""What a bit of each layer's weights costs on an engine, for quantizers that learn their bit-width."""

import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import nn

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.program import Program
from esbflow.engine_config import EngineConfig
from esbflow.graph.ir import Graph
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate

IMAGES = 32
"""Scales do not change cycles, so few images do."""


def pass_cycles(model: nn.Module, recipe: Recipe, images: np.ndarray, config: EngineConfig) -> dict:
    """{layer: cycles an image that weights of 8 bits take more than weights of 4 bits}: the price of a second pass.

    Parameters
    ----------
    model : a network in real numbers; left as it is.
    recipe : its weights are replaced, everything else holds.
    images : uint8 (n, c, h, w), for the scales; the first 32 are used.

    A layer that waits for its activations anyway costs little or nothing. Layers are named as modules of `model`.
    """
    four, eight = (_cycles(model, recipe, text, images[:IMAGES], config) for text in ("s4", "s8"))
    return {layer: max(0, eight[layer] - spent) for layer, spent in four.items()}


class CompiledTrial(NamedTuple):
    """A quantized copy of a model in eval mode, its graph and its program."""

    model: nn.Module
    graph: Graph
    program: Program


def trial(model: nn.Module, recipe: Recipe, images: np.ndarray, config: EngineConfig) -> CompiledTrial:
    """(quantized copy in eval mode, its graph, its program): a network as it would be compiled, calibrated on `images`.

    Raises
    ------
    CompileError
        if the engine cannot run it.
    """
    low = calibrate(quantize(copy.deepcopy(model).eval(), recipe), images, recipe.mean, recipe.std).eval()
    graph = export(low, "trial", images.shape[1:])
    return CompiledTrial(low, graph, compile_graph(graph, config))


def _cycles(model, recipe, text, images, config) -> dict:
    plain = replace(recipe, weights=text, first_weights=text, last_weights=text, overrides=())
    _, graph, program = trial(model, plain, images, config)
    modules = graph.info["modules"]
    spent = dict.fromkeys(modules.values(), 0)
    for layer, cycles in zip(program.meta["layers"], count_cycles(program).per_layer):
        if layer["name"] in modules:
            spent[modules[layer["name"]]] += cycles
    return spent
