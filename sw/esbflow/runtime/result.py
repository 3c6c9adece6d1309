"""What a run gives: outputs, and where its cycles went."""

from dataclasses import dataclass

import numpy as np

from esbflow.registers import COUNTERS

COUNTER_NAMES = tuple(name for name, _ in COUNTERS)


@dataclass(frozen=True)
class LayerCounters:
    """Counters of one layer (esbflow.registers.COUNTERS), summed over the batches of a run."""

    name: str
    counters: dict

    @property
    def cycles(self) -> int:
        return self.counters["cycles"]


@dataclass(frozen=True, eq=False)
class Result:
    """Outputs and counters of a run.

    Attributes
    ----------
    outputs : integers (n, c, h, w).
    scale : real value of one step of the outputs.
    layers : one LayerCounters a layer, in program order; a layer's cycles run from the end of the layer before.
    counters : of the whole run, doorbell to done, summed over batches.
    cycles_per_batch : list, doorbell to done of each batch.
    batch : images in each batch, padding included.
    """

    outputs: np.ndarray
    scale: float
    layers: list
    counters: dict
    cycles_per_batch: list
    batch: int

    @property
    def cycles(self) -> int:
        return sum(self.cycles_per_batch)

    @property
    def values(self) -> np.ndarray:
        """The outputs as real numbers, float64."""
        return self.outputs * self.scale

    @property
    def classes(self) -> np.ndarray:
        """Index of the largest output of each image, the lowest of equal ones; for classifiers."""
        return self.outputs.reshape(len(self.outputs), -1).argmax(axis=1)


def split_log(words: np.ndarray) -> np.ndarray:
    """Cumulative log records, uint32 (layers, words) -> counters of each layer, int64 (layers, counters).

    Counters are 32 bits wide and wrap: differences are taken modulo 2^32.
    """
    totals = words[:, :len(COUNTER_NAMES)].astype(np.uint32)
    before = np.concatenate([np.zeros_like(totals[:1]), totals[:-1]])
    return (totals - before).astype(np.int64)
