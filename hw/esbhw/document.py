"""Writes docs/registers.md and docs/instructions.md from the tables that gateware and driver use, and docs/performance.md
and the README's table of engines from the records of `make bench`.

    python -m esbhw.document docs
"""

import sys
from pathlib import Path

from esbflow import instructions, registers
from esbflow.engine_config import AXI_BEAT_BITS, INTERFACE_VERSION
from esbflow.files import write_whole
from esbhw import performance, performance_picture
from esbhw import performance_page as pages
from esbhw.readme_table import fill_readme

DOCS = Path(__file__).parents[2] / "docs"
"""Of the checkout: the records lie there."""
GENERATED = "<!-- Written by `python -m esbhw.document docs`; edit the tables there, not here. -->\n"

_MEANINGS = {
    "opcode": "which instruction this is", "layer": "layer number, for errors, the log and the LAYER register",
    "region": "memory region, counted as in registers.md", "offset": "first beat, from the start of the region",
    "beats": "beats of one run", "segments": "runs", "stride": "beats from the start of one run to the next",
    "destination": "buffer to fill, see above", "address": "first beat of the buffer",
    "wait_free": "take a token that says the destination is free", "post_full": "give a token with the last beat",
    "wait_stores": "take this many store tokens first",
    "apart": "pages of 4 KB from a slice's data to the next slice's, added to SLICE_BYTES; engines with stripes only",
}

_PASS = {
    "rows": "output rows of the tile", "cols": "output columns of the tile", "in_rows": "rows of the map in the buffer",
    "in_cols": "columns of the map in the buffer", "stride_y": "map rows from one output row to the next",
    "stride_x": "map columns, and buffer words, from one output column to the next",
    "y": "map row of output pixel (0, 0), signed", "x": "map column of output pixel (0, 0), signed",
    "address": "buffer word of output pixel (0, 0), signed", "row_step": "buffer words from one output row to the next",
    "half": "half of the activation buffer", "bank": "accumulator bank", "slot": "weight slot",
    "shift": "left shift in steps: of 4 bits, or `EngineConfig.shift_step`", "signed": "the activation digit is signed",
    "first": "overwrite the accumulators", "keep": "keep the tile of the pass before: load nothing",
    "book": "which of the two codebooks the tile's codes index", "load_book": "write that codebook first",
    "codebook": "its 16 entries of 5 bits: sign on top of the magnitude, or two's complement, see engine_facts.book_entry",
    **{f"wait_{name}": f"take a token: {meaning}" for name, meaning in (
        ("weights", "the slot is full"), ("activations", "the half is full"), ("accumulators", "the bank is free"))},
    **{f"post_{name}": f"give a token: {meaning}" for name, meaning in (
        ("weights", "the slot is free, once its tile is in the array"),
        ("activations", "the half is free, with the last pixel"),
        ("accumulators", "the bank is full, once its last sum is stored"))},
    "acc_first": "accumulator of output pixel (0, 0)",
    "acc_gap": "accumulators left out between one output pixel and the next; an engine of more rows than columns has "
               "`rows / cols` for each pixel",
    "stripe": "map rows from a slice's pixels to the next slice's, so that each slice sees the map's ends where they are; "
              "`in_rows` and `y` are then those of the whole map and of slice 0; engines with stripes only",
    "images": "maps of `rows * cols` pixels that the pass goes over. `y` and `x` begin anew with each; address and "
              "accumulator go on as from row to row. 1 to 127; engines with batch tiles only",
}

_CHANNEL = {name: meaning for name, meaning in _PASS.items() if "book" not in name} | {
    "cols": "columns that a row of outputs reads", "stride_x": "map columns, and buffer words, from one column to the next",
    "y": "map row of the first word of column (0, 0), signed", "x": "its map column, signed",
    "address": "its buffer word, signed", "keep": "keep the taps of the pass before: load nothing",
    "post_weights": "give a token: the slot is free, once its taps are in the unit",
    "tap_rows": "words of a column that belong to the window, 1 to 3",
    "tap_cols": "columns of the window, 1 to 3; as many are read before a row's first output is there",
    "tap_step_y": "map rows from one word of a column to the next", "tap_step": "buffer words from one to the next",
    "gap": "columns between those that bring an output", "maximum": "take the window's maximum, not its weighed sum",
    "part": "block of `channel_unit` channels of the tile; modulo the blocks of columns, the accumulators' columns that are "
            "added to; modulo the blocks in a word, the channels that are taken",
}

_DRAIN = {
    "acc_rows": "rows of pixels in the bank", "acc_cols": "columns of pixels in the bank",
    "out_rows": "rows to store", "out_cols": "columns to store, up to a whole beat",
    "kernel_y": "rows of the pooling window; 1 without pooling", "kernel_x": "columns of the pooling window",
    "stride_y": "pixels from one window to the next", "stride_x": "pixels from one window to the next",
    "pad_y": "rows that window (0, 0) begins before the tile", "pad_x": "columns that it begins before the tile",
    "digits": "digits of an output; with 2-bit digits 0 means 16", "planes": "channel groups of `rows` channels to store",
    "plane_stride": "beats from one channel group to the next", "digit_stride": "beats from one digit to the next",
    "segments": "runs of a plane", "segment_beats": "beats of a run", "segment_stride": "beats from run to run",
    "bank": "accumulator bank", "constants": "bank of constants",
    "bits": "bits of a linear output format", "signed": "the output format is signed",
    "esb": "the output format is ESB", "significand": "fraction bits of an ESB format",
    "octaves": "an ESB format's largest level is (2**(significand+1)-1) << octaves",
    "residual": "add a residual operand, and take and give its tokens; only with windows of one pixel",
    "residual_bank": "bank of the residual buffer",
    "residual_digits": "digits of the residual, 1 or 2; with 2-bit digits 0 means 4",
        "residual_signed": "the residual's top digit is signed",
    "post_store": "give a store token when the last burst is answered",
    "table": "look the level up in the function table, of at most 8 bits; only where there is one",
}

_UNFOLD = {
    "half": "half of the activation buffer", "address": "first beat of the half that is written",
    "plane_step": "beats from one digit's plane to the next", "digits": "digits of a word",
    "rows": "rows of the map to make", "groups": "groups of words in a row", "steps": "steps that make a group",
    "first": "the first of them", "line": "beat of the image buffer where the first row's lines begin, modulo 2**16",
    "row_beats": "beats from one row's lines to the next row's, modulo 2**16", "y": "image row of those lines, signed",
    "y_step": "image rows from one row of the map to the next", "height": "rows of the image",
    "x": "byte of a line with which the first group begins, signed", "x_step": "bytes from one group to the next",
    "width": "bytes of a line", "wait_free": "take a token: the half is free",
    "wait_image": "take a token: the lines are in the image buffer", "post_full": "give a token: the half is full",
}

MEANINGS = {"PASS": _PASS, "CHANNEL": _CHANNEL, "DRAIN": _DRAIN, "UNFOLD": _UNFOLD}

_ABOUT = {
    "LOAD": "Copies `segments` runs of `beats` beats, `stride` beats apart in memory, to consecutive beats of a buffer. "
            "Destinations 0 and 1 are the halves of the activation buffer. 2 + 2 * bank + plane is the residual buffer; "
            "plane 0 holds the low and 1 the high digit. In engines with an image buffer also to that (6), or its table and "
            "steps (7, 64 beats); `wait_free` must then be zero.",
    "WEIGHTS": "As LOAD, through the weights port, to the weight slots (destination 0; `address` counts beats from slot "
               "0) or to the banks of constants (1: bank 0, 2: bank 1; `address` counts channels, one a beat). "
               "`wait_stores` must be zero.",
    "PASS": "Multiplies the weight tile in `slot` with the buffer word of each of `rows * cols` output pixels, and adds "
            "the shifted products to `bank`. Outside the map the word counts as zero.",
    "CHANNEL": "A pass through the channel unit, in engines that have one. Each channel's window of up to 3 x 3 words is "
               "weighed with the channel's taps and added up, or its maximum is taken. The columns of `part` take that in, "
               "the others nothing. `first` still overwrites all of them. Outside the map a word counts as zero, and for a "
               "maximum as less than any other. The last column must bring an output.",
    "DRAIN": "Requantizes a bank, takes the maximum over each pooling window and stores it, digit by digit and channel "
             "group by channel group. Window coordinates clamp to the tile.",
    "STAMP": "Writes one log record: the counters, then zeros, then the layer number, as 32-bit words.",
    "END": "Ends the run once every write has been answered.",
    "UNFOLD": "Makes rows of a map from raw pixels, in engines with an image buffer. Bytes that lie outside the image are "
              "zero. One that does not wait for lines must follow another UNFOLD.",
}


def registers_page() -> str:
    """docs/registers.md as text, from esbflow.registers."""
    about = (f"AXI4-Lite, 32-bit registers, interface version {INTERFACE_VERSION}. Other addresses read as zero and "
             "ignore writes. See [engine.md](engine.md) for the life of a run.\n")
    lines = [GENERATED, "# Registers\n", about,
             "| offset | name | access | meaning | fields |", "| --- | --- | --- | --- | --- |"]
    for register in registers.REGISTERS.values():
        fields = ", ".join(f"{name} [{low + width - 1}:{low}]" if width > 1 else f"{name} [{low}]"
                           for name, low, width in register.fields)
        lines.append(f"| 0x{register.offset:03x} | {register.name} | {register.access} | {register.description} "
                     f"| {fields} |")
    lines += ["\n## Memory regions\n", "An instruction's `region` counts through: " + ", ".join(
        f"{i} {name}" for i, name in enumerate(registers.REGIONS)) + ". A region begins at a multiple of 4 KB. Engines "
        f"with `map_beats` have {registers.MAPS_REGION} {registers.MAPS} as well, on chip, for LOAD and DRAIN.\n",
        "## Error codes\n", "STATUS.code:\n", "| code | name | meaning |", "| --- | --- | --- |"]
    lines += [f"| {code} | {name} | {meaning} |" for code, (name, meaning) in registers.ERRORS.items()]
    lines += ["\nSTATUS.unit: " + ", ".join(f"{i} {name}" for i, name in enumerate(registers.UNITS)) + ".\n",
              "## Log record\n",
              f"{registers.LOG_BEATS} beats of {AXI_BEAT_BITS} bits for each layer, as 32-bit words:\n",
              "| word | content |", "| --- | --- |"]
    lines += [f"| {i} | {name}: {meaning} |" for i, (name, meaning) in enumerate(registers.COUNTERS)]
    last = registers.LOG_BEATS * AXI_BEAT_BITS // 32 - 1
    lines += [f"| {len(registers.COUNTERS)}..{last - 1} | zero |", f"| {last} | layer number |"]
    return "\n".join(lines) + "\n"


def instructions_page() -> str:
    """docs/instructions.md as text, from esbflow.instructions."""
    about = (f"A program is a list of {instructions.INSTRUCTION_BITS}-bit words, lowest bits first in memory. Bits that "
             "no field names are ignored. Counts are as they are (no minus one), addresses count 128-bit beats. Tokens "
             "order the units: [engine.md](engine.md) says which wait answers which post.\n")
    lines = [GENERATED, "# Instructions\n", about]
    for opcode, code in instructions.OPCODES.items():
        lines += [f"## {opcode} (opcode {code})\n", f"{_ABOUT[opcode]}\n", "| bits | field | meaning |",
                  "| --- | --- | --- |"]
        for name, (low, width) in instructions.layout(opcode).items():
            bits = f"{low + width - 1}:{low}" if width > 1 else f"{low}"
            meaning = MEANINGS.get(opcode, {}).get(name) or _MEANINGS[name]
            lines.append(f"| {bits} | {name} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def performance_page() -> str:
    """What `make bench` recorded, as a page."""
    return "<!-- Written by `python -m esbhw.document docs` from results/*.json; `make bench` measures them. -->\n\n" \
        + pages.page(DOCS)


def density_picture() -> str:
    """The picture of densities, from the records and the area model."""
    return performance_picture.picture(performance.read(DOCS / performance.RESULTS / performance.ENGINES_FILE))


PAGES = {"registers.md": registers_page, "instructions.md": instructions_page, "performance.md": performance_page,
         performance_picture.PICTURE: density_picture}


def main(folder: str = "docs") -> None:
    """Writes the pages into `folder`, and fills the README beside it, if there is one."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        write_whole(Path(folder) / name, page())
    readme = Path(folder).absolute().parent / "README.md"
    if readme.exists():
        records = performance.read(DOCS / performance.RESULTS / performance.ENGINES_FILE)
        write_whole(readme, fill_readme(readme.read_text(), records, DOCS))


if __name__ == "__main__":
    main(*sys.argv[1:])
