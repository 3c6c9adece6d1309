"""Small engines, synthesized so that the area model has seen every option: written to docs/results/area-samples.json.

    python -m esbhw.area_samples              # measures every sample that is not in the file; minutes each without a cache
    python -m esbhw.area_samples --again      # measures all of them: after a change of the RTL
"""

import sys
from pathlib import Path

from esbflow.engine_config import EngineConfig
from esbflow.files import write_json
from esbhw import performance
from esbhw.synthesis import synthesize

SAMPLES_FILE = "area-samples.json"


def _sample(rows: int, cols: int, **options) -> EngineConfig:
    small = dict(accumulator_depth=256, activation_beats=256, residual_beats=256)
    return EngineConfig(f"sample{rows}x{cols}", rows=rows, cols=cols, **{**small, **options})


SAMPLES = {f"sample{number}": config for number, config in enumerate((
    _sample(8, 8, weight_min=-8, weight_max=7, requantize_lanes=2, residual=False),
    _sample(8, 16, array="table", table_groups=2, weight_path_beats=2, weight_ports=2),
    _sample(16, 32, weight_min=-2, weight_max=1, digit_bits=2, requantize_lanes=8, esb_output=False,
            weight_path_beats=2, requantizer="shift"),
    _sample(16, 16, array="table", table_groups=2, weight_min=-8, weight_max=7, residual=False, esb_output=False),
    _sample(4, 8, requantize_lanes=1, accumulator_depth=64, activation_beats=64, residual_beats=64, weight_slots=4),
    _sample(32, 32, array="table", table_groups=4, weight_min=-2, weight_max=1, digit_bits=2, requantize_lanes=8,
            weight_path_beats=2, activation_beats=1024, residual_beats=1024, accumulator_depth=512),
    _sample(16, 32, weight_min=-7, weight_max=7, requantize_lanes=8, weight_path_beats=4, weight_ports=4, channel_unit=16),
    _sample(16, 64, array="table", table_groups=2, weight_min=-4, weight_max=3, requantize_lanes=16, channel_unit=8,
            weight_path_beats=4, weight_ports=4, accumulator_width=24),
    _sample(32, 32, weight_min=-8, weight_max=7, requantize_lanes=16, weight_path_beats=4, accumulator_width=24,
            activation_beats=2048, residual_beats=2048, accumulator_depth=1024),
    _sample(32, 64, array="table", table_groups=4, weight_min=-12, weight_max=12, requantize_lanes=16,
            weight_path_beats=4, activation_beats=2048, residual_beats=2048, weight_slots=32),
    _sample(8, 32, weight_min=-3, weight_max=3, channel_unit=4, requantizer="shift"),
    _sample(16, 16, array="table", table_groups=1, weight_min=-1, weight_max=1, digit_bits=2, requantize_lanes=2,
            esb_output=False),
    _sample(32, 32, weight_min=-2, weight_max=1, requantize_lanes=32, weight_path_beats=2, weight_ports=2, channel_unit=32,
            accumulator_width=20),
    _sample(16, 32, array="table", table_groups=4, weight_min=-8, weight_max=7, requantize_lanes=16, weight_path_beats=8,
            weight_ports=4, channel_unit=16, activation_beats=4096, residual_beats=4096, weight_slots=64),
    _sample(8, 16, array="table", table_groups=2, weight_min=-8, weight_max=7, accumulator_width=26, requantize_lanes=2,
            slices=8, activation_ports=2),
    _sample(8, 8, weight_min=-8, weight_max=7, requantize_lanes=2, image_beats=512),
    _sample(8, 8, weight_min=-8, weight_max=7, requantize_lanes=2, slices=4, activation_ports=2, map_beats=2048),
), 1)}
"""{name of the record: configuration}"""


def measure(path: Path, again: bool = False, say=print) -> dict:
    """Records of the samples: {name: {"config", blocks of Resources.to_dict()}}."""
    content = {} if again else performance.read(path)
    for name, config in SAMPLES.items():
        if name not in content or not performance.is_of(content[name], config):
            say(f"synthesize {name}: {config.rows} x {config.cols}, {config.array}")
            found = synthesize(config).to_dict()
            del found["seconds"]
            content[name] = {"config": config.to_dict(), **found}
            write_json(path, {name: content[name] for name in SAMPLES if name in content})
    return content


if __name__ == "__main__":
    measure(Path("docs") / performance.RESULTS / SAMPLES_FILE, "--again" in sys.argv[1:],
            lambda text: print(text, file=sys.stderr, flush=True))
