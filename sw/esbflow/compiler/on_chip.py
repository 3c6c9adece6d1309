"""Which maps stay on chip between layers, in the engine's map memory; the rest go to memory and come back."""

from esbflow.compiler.layout import TensorLayout
from esbflow.engine_config import EngineConfig


def stay_on_chip(config: EngineConfig, layers: list, layouts: dict[str, TensorLayout]) -> dict:
    """Tensor of the workspace -> its first beat in each slice's map memory, of those that fit there.

    A map is there from the layer that makes it to the last one that reads it, as an operand or as a residual. Those come
    first whose beats are moved most often for the time that they take up; each lies at the lowest beats that are free then.
    """
    made = {layer.target: number for number, layer in enumerate(layers)}
    reads: dict[str, list] = {}
    for number, layer in enumerate(layers):
        for source in (*layer.sources, layer.residual):
            if source in made:
                reads.setdefault(source, []).append(number)

    def worth(name: str) -> float:
        return (1 + len(reads[name])) / (1 + reads[name][-1] - made[name])

    placed: dict[str, tuple] = {}  # first beat, end, made, last read
    for name in sorted(reads, key=lambda name: (-worth(name), made[name])):
        layout, begin, end = layouts[name], made[name], reads[name][-1]
        if layout.region != "workspace":
            continue
        offset = 0
        for first, behind, *_ in sorted(entry for entry in placed.values() if entry[2] <= end and begin <= entry[3]):
            if offset + layout.beats <= first:
                break
            offset = max(offset, behind)
        if offset + layout.beats <= config.map_beats:
            placed[name] = offset, offset + layout.beats, begin, end
    return {name: entry[0] for name, entry in placed.items()}
