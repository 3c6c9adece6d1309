"""Fits the area model of `esbflow estimate` (esbflow.area) to the records of named engines and of esbhw.area_samples.

    python -m esbhw.area_fit         # writes sw/esbflow/area_model.json and says how well it predicts
    python -m esbhw.area_fit --check # only says it

Each engine is also predicted by a fit to all the others; the largest of those errors is what `esbflow estimate` prints
beside its figures. The exit code is 1 if that is more than LIMIT.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from esbflow import area
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.files import write_json
from esbhw import performance
from esbhw.area_samples import SAMPLES, SAMPLES_FILE

LIMIT = 0.10
PARTS = {  # block of the model: blocks of the report; a block that is not here is the model's own
    "control and memory ports": ("control, counters, tokens", "AXI ports", "loaders", "fetch", "instruction queues",
                                 "sequencer", "top: connections"),
    "buffers": ("requantizer constants", "residual buffer", "weight slots", "activation buffer", "channel buffer 0",
                "channel buffer 1"),
    "channel unit": ("channel unit", *(f"dots stage {number}" for number in range(8))),
}


def engines(folder: Path) -> list:
    """(name, configuration, record) of every record that is of a known configuration."""
    named = performance.read(folder / performance.ENGINES_FILE)
    samples = performance.read(folder / SAMPLES_FILE)
    found = [(name, ENGINES[name], record) for name, record in named.items()
             if name in ENGINES and performance.is_of(record, ENGINES[name])]
    return found + [(name, SAMPLES[name], record) for name, record in samples.items()
                    if name in SAMPLES and performance.is_of(record, SAMPLES[name])]


def fit(measured: list) -> dict:
    """{block: {feature: {resource: coefficient}}}: least squares of relative errors, no coefficient below zero."""
    blocks = {}
    rows = [(area.features(config), by_block(config, record), record) for _, config, record in measured]
    for block in dict.fromkeys(block for found, _, _ in rows for block in found):
        here = [(found[block], parts.get(block, {}), record) for found, parts, record in rows if block in found]
        names = list(here[0][0])
        fitted = {}
        for resource in area.RESOURCES:
            # An error counts by its share of the engine.
            weight = np.array([1 / record[resource] for _, _, record in here])
            matrix = np.array([[values[name] for name in names] for values, _, _ in here], dtype=float)
            wanted = np.array([parts.get(resource, 0) for _, parts, _ in here], dtype=float)
            fitted[resource] = _not_negative(matrix * weight[:, None], wanted * weight)
        blocks[block] = {name: {resource: float(f"{fitted[resource][k]:.4g}") for resource in area.RESOURCES}
                         for k, name in enumerate(names)}
    return blocks


def _not_negative(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares with coefficients of at least zero; features differ by orders of magnitude."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1
    return nnls(matrix / scale, wanted)[0] / scale


def by_block(config: EngineConfig, record: dict) -> dict:
    """A record's resources, by the model's blocks."""
    owner = {part: block for block, parts in PARTS.items() for part in parts} | {"array": f"{config.array} array"}
    total = {}
    for name, values in record["blocks"].items():
        block = total.setdefault(owner.get(name, name), dict.fromkeys(area.RESOURCES, 0))
        for resource in area.RESOURCES:
            block[resource] += values[resource]
    if config.function_table:  # counted, not fitted
        for resource, value in area.function_table(config).items():
            total["drain and requantizer"][resource] -= value
    return total


def predict(blocks: dict, config: EngineConfig) -> dict:
    """Resources of a configuration by fitted coefficients."""
    counted = area.function_table(config) if config.function_table else dict.fromkeys(area.RESOURCES, 0)
    return {resource: counted[resource] + sum(blocks.get(block, {}).get(name, {}).get(resource, 0) * value
                                              for block, values in area.features(config).items()
                                              for name, value in values.items())
            for resource in area.RESOURCES} | {"bram36": area.block_rams(config)}


def left_out(measured: list) -> dict:
    """{name: {resource: relative error}} of each engine, predicted by a fit to all the others.

    An engine that alone has a feature is not among them: a fit to the others knows nothing of it.
    """
    errors, parts = {}, [_parts(config) for _, config, _ in measured]
    for k, (name, config, record) in enumerate(measured):
        if parts[k] - set().union(*parts[:k], *parts[k + 1:]):
            continue
        found = predict(fit(measured[:k] + measured[k + 1:]), config)
        errors[name] = {resource: value / record[resource] - 1 for resource, value in found.items() if record[resource]}
    return errors


def _parts(config: EngineConfig) -> set:
    """The features that an engine has, by block."""
    return {(block, name) for block, values in area.features(config).items() for name, value in values.items() if value}


def main(arguments: list) -> int:
    """Fit the model to the records in docs/results, print the errors and write it; the exit code."""
    measured = engines(Path("docs") / performance.RESULTS)
    blocks, errors = fit(measured), left_out(measured)
    worst = max(abs(value) for found in errors.values() for value in found.values())
    print("engine                 errors of a fit to the others, %")
    for name, found in errors.items():
        print(f"{name:22} " + "  ".join(f"{resource} {100 * value:+5.1f}" for resource, value in found.items()))
    print(f"largest: {100 * worst:.1f} %")
    if "--check" not in arguments:
        write_json(area.MODEL, {
            "error": round(worst, 3), "blocks": blocks,
            "left_out": {name: {resource: round(value, 4) for resource, value in found.items()}
                         for name, found in errors.items()}})
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
