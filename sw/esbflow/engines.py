"""The named engines, and engines from files. No Amaranth in here, and NumPy neither: a board reads it too."""

import json

from esbflow.engine_config import EngineConfig
from esbflow.errors import BadValue, reason
from esbflow.suggest import no_such

_LARGE: dict = dict(activation_beats=2048, residual_beats=2048, weight_path_beats=4, requantize_lanes=16)
_W2A2: dict = dict(weight_min=-2, weight_max=1, digit_bits=2, accumulator_width=24, activation_beats=2048,
                   residual_beats=1024, weight_path_beats=4, requantize_lanes=16)
ENGINES = {
    config.name: config
    for config in (
        EngineConfig("tiny4x4", rows=4, cols=4, accumulator_depth=64, activation_beats=64, residual_beats=64,
                     weight_slots=4, requantize_lanes=4, max_burst=16),
        EngineConfig("small8x16", rows=8, cols=16, accumulator_depth=256, activation_beats=256,
                     residual_beats=256, requantize_lanes=4),
        EngineConfig("small8x16-channel", rows=8, cols=16, accumulator_depth=256, activation_beats=256, residual_beats=256,
                     requantize_lanes=4, channel_unit=8),
        EngineConfig("base16x16", rows=16, cols=16),
        EngineConfig("large64x64", rows=64, cols=64, activation_beats=2048, residual_beats=2048,
                     weight_path_beats=4, requantize_lanes=16),
        EngineConfig("table64x64", rows=64, cols=64, array="table", table_groups=8, **_LARGE),
        EngineConfig("table64x64-w4", rows=64, cols=64, array="table", table_groups=8, weight_min=-8, weight_max=7,
                     **_LARGE),
        EngineConfig("table64x128", rows=64, cols=128, array="table", table_groups=4, **_LARGE),
        EngineConfig("table64x128-w4", rows=64, cols=128, array="table", table_groups=4, weight_min=-8, weight_max=7,
                     **_LARGE),
        EngineConfig("table64x128-shift", rows=64, cols=128, array="table", table_groups=4, requantizer="shift", **_LARGE),
        EngineConfig("table128x64-w4", rows=128, cols=64, array="table", table_groups=8, weight_min=-8, weight_max=7,
                     accumulator_depth=1024, **{**_LARGE, "activation_beats": 4096, "residual_beats": 4096}),
        EngineConfig("table128x128", rows=128, cols=128, array="table", table_groups=4,
                     **{**_LARGE, "activation_beats": 4096, "residual_beats": 4096, "weight_slots": 8}),
        EngineConfig("table128x128-w4", rows=128, cols=128, array="table", table_groups=4, weight_min=-8, weight_max=7,
                     **{**_LARGE, "activation_beats": 4096, "residual_beats": 4096, "weight_slots": 8}),
        EngineConfig("table64x64-w4-slices2", rows=64, cols=64, array="table", table_groups=8, weight_min=-8, weight_max=7,
                     accumulator_width=30, weight_ports=4, slices=2, activation_ports=2, **_LARGE),
        EngineConfig("table64x64-w4-slices4", rows=64, cols=64, array="table", table_groups=8, weight_min=-8, weight_max=7,
                     accumulator_width=30, weight_ports=4, slices=4, activation_ports=4, **_LARGE),
        EngineConfig("table32x32-w4-slices4", rows=32, cols=32, array="table", table_groups=4, weight_min=-8, weight_max=7,
                     accumulator_width=30, weight_ports=4, slices=4, activation_ports=4, **_LARGE),
        EngineConfig("table16x16-w4-slices16", rows=16, cols=16, array="table", table_groups=2, weight_min=-8, weight_max=7,
                     accumulator_width=26, requantize_lanes=2, slices=16, activation_ports=2),
        EngineConfig("table64x64-w2a2", rows=64, cols=64, array="table", table_groups=8, **_W2A2),
        EngineConfig("table64x128-w2a2", rows=64, cols=128, array="table", table_groups=4, **_W2A2),
        # For a board each: what they have fits the part.
        EngineConfig("zcu102-w4a4", rows=32, cols=64, array="table", table_groups=4, weight_min=-8, weight_max=7,
                     accumulator_width=30, channel_unit=16, slices=4, stripes=True, activation_ports=4,
                     function_table=True, image_beats=2048, map_beats=8192, batch_tiles=True,
                     **{**_LARGE, "activation_beats": 1024, "residual_beats": 1024}),
        EngineConfig("zcu102-esb", rows=64, cols=64, weight_ports=2, channel_unit=32, batch_tiles=True, **_LARGE),
        EngineConfig("zcu102-w2a2", rows=128, cols=128, array="table", table_groups=4, weight_ports=2, batch_tiles=True,
                     **{**_W2A2, "residual_beats": 2048, "weight_slots": 8}),
        EngineConfig("kv260-w4a4", rows=64, cols=64, array="table", table_groups=8, weight_min=-8, weight_max=7,
                     weight_ports=2, channel_unit=16, image_beats=1024, batch_tiles=True, clock_mhz=200,
                     **{**_LARGE, "activation_beats": 1024, "residual_beats": 1024}),
        EngineConfig("ultra96-w4a4", rows=32, cols=64, array="table", table_groups=4, weight_min=-8, weight_max=7,
                     weight_ports=2, channel_unit=16, image_beats=2048, batch_tiles=True, clock_mhz=200,
                     **{**_LARGE, "residual_beats": 1024, "requantize_lanes": 8}),
        EngineConfig("pynq-z2-w4a4", rows=16, cols=32, weight_min=-8, weight_max=7, requantize_lanes=8, channel_unit=8,
                     weight_path_beats=2, batch_tiles=True, clock_mhz=100),
    )
}
"""The named configurations. DEFAULT_ENGINE is the one that the demo builds."""

DEFAULT_ENGINE = "base16x16"


def engine(name: str) -> EngineConfig:
    """The named configuration, or one read from a file when `name` ends in .json: an `engine.json` as `esbflow rtl` writes
    it, or an object of nothing but EngineConfig's fields.

    Raises
    ------
    ValueError
        if there is no such configuration, listing the known ones.
    """
    if name.endswith(".json"):
        try:
            with open(name, encoding="utf-8") as file:
                content = json.load(file)
        except FileNotFoundError:
            raise BadValue(f"there is no engine file {name}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadValue(f"{name} is no JSON file of an engine: {reason(error)}") from None
        try:
            if not isinstance(content, dict):
                raise TypeError("it holds no object")
            return EngineConfig.from_dict(content.get("config", content))
        except (TypeError, ValueError) as error:
            raise BadValue(f"{name} is no engine's configuration: {error}") from None
    if name not in ENGINES:
        raise BadValue(no_such("engine", name, ENGINES))
    return ENGINES[name]
