"""What both arrays have in common: their ports, and the choice between them."""

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow import engine_facts as facts
from esbflow.engine_config import CODE_BITS, EngineConfig


def array_signature(config: EngineConfig) -> wiring.Signature:
    """Ports of an array, or of as many as there are slices: all hold the same tile.

    Members
    -------
    activations : In(slices * word_bits), digits in offset binary
    swap : In(1), the tile that was loaded is active for the activations of the following cycle
    load_en : In(1);  load_index : In(range(max(2, tile_rows)));  load_codes : In(path_codes * 4): the next tile, a row of
        the weight path at a time; code k of row i is code i * path_codes + k of the tile
    book : In(1), which codebook the codes index; held until the next load
    book_en : In(1);  book_address : In(5);  book_data : In(weight_bits): the codebooks' write port
    dots : Out(slices * cols * dot_bits), unsigned: see `engine_facts.array_offset`
    """
    return wiring.Signature({
        "activations": In(config.slices * config.word_bits),
        "swap": In(1),
        "load_en": In(1),
        "load_index": In(range(max(2, config.tile_rows))),
        "load_codes": In(config.path_codes * CODE_BITS),
        "book": In(1),
        "book_en": In(1), "book_address": In(CODE_BITS + 1), "book_data": In(facts.weight_bits(config)),
        "dots": Out(config.slices * config.cols * facts.dot_bits(config)),
    })


def make_array(config: EngineConfig):
    """The array that a configuration asks for."""
    from esbhw.engine.shift_add_array import ShiftAddArray
    from esbhw.engine.table_array import TableArray

    return TableArray(config) if config.array == "table" else ShiftAddArray(config)
