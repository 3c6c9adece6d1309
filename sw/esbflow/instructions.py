"""The engine's instructions: fields of 256-bit words, for compiler, cycle model and gateware alike.

A field's place follows from the order in its table, lowest bits first. All counts are as they are
(no minus one). Addresses are offsets into a memory region, in 128-bit beats; the host sets the regions'
base addresses in registers, so that a program can lie anywhere.

Tokens order the units (the scheme of VTA and BISMO): an instruction with a `wait_*` bit starts once that
semaphore is above zero and takes one; `post_*` gives one when it has finished. A program is valid if each wait
is answered by a post that stands before it; then in-order dispatch cannot lock up.
"""

from typing import NamedTuple

from esbflow.errors import BadValue

INSTRUCTION_BITS = 256
INSTRUCTION_BEATS = 2

LOAD, WEIGHTS, PASS, DRAIN, STAMP, END, CHANNEL, UNFOLD = 1, 2, 3, 4, 5, 6, 7, 8
OPCODES = {"LOAD": LOAD, "WEIGHTS": WEIGHTS, "PASS": PASS, "DRAIN": DRAIN, "STAMP": STAMP, "END": END, "CHANNEL": CHANNEL,
           "UNFOLD": UNFOLD}

_HEADER = (("opcode", 4), ("layer", 12))

# A load copies `segments` runs of `beats` beats, `stride` beats apart in memory, into consecutive beats
# of a buffer. Destinations of LOAD: 0 and 1 the halves of the activation buffer; 2 + 2*bank + plane the residual
# buffer, plane 0 the low and 1 the high digit; 6 the image buffer, 7 the image table and
# the steps of UNFOLD. Of WEIGHTS: 0 the slots, 1 and 2 the banks of constants, 4 the function
# table.
_TRANSFER = _HEADER + (
    ("region", 3), ("offset", 28), ("beats", 16), ("segments", 12), ("stride", 28),
    ("destination", 3), ("address", 16), ("wait_free", 1), ("post_full", 1), ("wait_stores", 10),
)

# A pass streams rows x cols output pixels. Pixel (0, 0) reads buffer word `address` (two's complement: padding
# lies before the map), which is input pixel (y, x); outside 0..in_rows-1, 0..in_cols-1 the word is zero. Its sums go to
# accumulator `acc_first`, those of each next pixel `acc_gap` + 1 accumulators further.
_STREAM = _HEADER + (
    ("rows", 10), ("cols", 10), ("in_rows", 10), ("in_cols", 10), ("stride_y", 6), ("stride_x", 6),
    ("y", 11), ("x", 11), ("address", 20), ("row_step", 16),
    ("half", 1), ("bank", 1), ("slot", 7), ("shift", 5), ("signed", 1), ("first", 1), ("keep", 1),
    ("wait_weights", 1), ("wait_activations", 1), ("wait_accumulators", 1),
    ("post_weights", 1), ("post_activations", 1), ("post_accumulators", 1), ("acc_first", 4), ("acc_gap", 4),
)

FIELDS = {
    "LOAD": _TRANSFER,
    "WEIGHTS": _TRANSFER,
    # The tile's codes stand for the entries of one of two codebooks, `book`; with `load_book` the pass brings it.
    "PASS": _STREAM + (("book", 1), ("load_book", 1), ("codebook", 80)),
    # A pass through the channel unit: `cols` counts the columns that a row of outputs reads. A column is `tap_rows` words,
    # `tap_step` words and `tap_step_y` map rows apart. The first output comes with column `tap_cols`, then one after every
    # `gap` + 1 columns, the last with the last.
    "CHANNEL": _STREAM + (
        ("tap_rows", 2), ("tap_cols", 2), ("tap_step_y", 6), ("tap_step", 16), ("gap", 6), ("maximum", 1), ("part", 5)),
    # A drain requantizes a bank's acc_rows x acc_cols pixels, takes the maximum over each window (1x1: none), and
    # stores out_rows x out_cols words of each plane and digit. Window coordinates clamp to the tile, which for a
    # maximum is the same as padding that never wins (padding is smaller than the kernel).
    "DRAIN": _HEADER + (
        ("region", 3), ("offset", 28), ("acc_rows", 10), ("acc_cols", 10), ("out_rows", 10), ("out_cols", 10),
        ("kernel_y", 4), ("kernel_x", 4), ("stride_y", 4), ("stride_x", 4), ("pad_y", 4), ("pad_x", 4),
        ("digits", 4), ("planes", 6), ("plane_stride", 24), ("digit_stride", 24),
        ("segments", 10), ("segment_beats", 16), ("segment_stride", 16),
        ("bank", 1), ("constants", 1), ("bits", 6), ("signed", 1), ("esb", 1), ("significand", 3), ("octaves", 3),
        ("residual", 1), ("residual_bank", 1), ("residual_digits", 2), ("residual_signed", 1),
        ("post_store", 1), ("table", 1),
    ),
    # Writes one log record (registers.LOG_BEATS) at `offset`.
    "STAMP": _HEADER + (("region", 3), ("offset", 28)),
    # Ends the run once every write has been answered.
    "END": _HEADER,
    # Makes `rows` rows of words from the image buffer. A row is `groups` groups, each made in `steps` steps from step
    # `first` on (engine_facts.STEP_FIELDS). Group (0, 0) has its lines from beat `line` of the image buffer on. They begin
    # with row `y` of an image of `height` rows, and it with byte `x` of lines of `width` bytes; what lies outside is zero.
    # Of each integer `digits` digits are stored, their planes `plane_step` beats apart. `line` and `row_beats` count modulo
    # 2**16.
    "UNFOLD": _HEADER + (
        ("half", 1), ("address", 16), ("plane_step", 16), ("digits", 3), ("rows", 10), ("groups", 10), ("steps", 7),
        ("first", 6), ("line", 16), ("row_beats", 16), ("y", 12), ("y_step", 11), ("height", 11), ("x", 14), ("x_step", 14),
        ("width", 14), ("wait_free", 1), ("wait_image", 1), ("post_full", 1),
    ),
}

# What only engines with `EngineConfig.stripes` look at, in the highest bits. `apart`: pages of 4 KB from a slice's data to
# the next slice's, beside SLICE_BYTES. `stripe`: rows of the map from a slice's pixels to the next slice's.
STRIPE_FIELDS = {**dict.fromkeys(("LOAD", "DRAIN", "STAMP"), (("apart", 16),)),
                 **dict.fromkeys(("PASS", "CHANNEL"), (("stripe", 10),))}
# What only engines with `EngineConfig.batch_tiles` look at, below that. A pass walks over the `rows` x `cols` pixels of each
# of `images` maps. `y` and `x` begin anew with each; address and accumulator go on, the address by `row_step`.
IMAGE_FIELDS = dict.fromkeys(("PASS", "CHANNEL"), (("images", 7),))
_HIGHEST = {opcode: (*IMAGE_FIELDS.get(opcode, ()), *fields) for opcode, fields in STRIPE_FIELDS.items()}

OPTIONAL = {("DRAIN", "table"): "function_table",
            **{(opcode, name): option for option, table in (("stripes", STRIPE_FIELDS), ("batch_tiles", IMAGE_FIELDS))
               for opcode, fields in table.items() for name, _ in fields}}
"""Fields that only engines with an option of EngineConfig have, each behind those that all engines have."""

for _name, _fields in FIELDS.items():
    assert sum(width for _, width in (*_fields, *_HIGHEST.get(_name, ()))) <= INSTRUCTION_BITS, _name


def is_signed(opcode: str, name: str) -> bool:
    """Whether an opcode's field is two's complement."""
    return (opcode in ("PASS", "CHANNEL") and name in ("y", "x", "address")) or (opcode == "UNFOLD" and name in ("y", "x"))


def layout(opcode: str) -> dict:
    """{field: (lowest bit, width)} of an instruction, OPTIONAL ones as well.

    >>> layout("END")
    {'opcode': (0, 4), 'layer': (4, 12)}
    """
    places, low = {}, 0
    for name, width in FIELDS[opcode]:
        places[name] = (low, width)
        low += width
    low = INSTRUCTION_BITS
    for name, width in reversed(_HIGHEST.get(opcode, ())):
        low -= width
        places[name] = (low, width)
    return places


_LAYOUTS = {opcode: layout(opcode) for opcode in FIELDS}


def encode(opcode: str, **values: int) -> int:
    """One instruction as a 256-bit integer; fields not named are zero.

    Raises
    ------
    ValueError
        if a value does not fit its field, naming both.

    >>> hex(encode("END", layer=2))
    '0x26'
    >>> encode("LOAD", region=9)
    Traceback (most recent call last):
    esbflow.errors.BadValue: LOAD: region = 9 does not fit in 3 bits
    """
    places = _LAYOUTS[opcode]
    word = OPCODES[opcode]
    for name, value in values.items():
        low, width = places[name]
        value = int(value)
        signed = is_signed(opcode, name)
        smallest, largest = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
        if not smallest <= value <= largest:
            raise BadValue(f"{opcode}: {name} = {value} does not fit in {width} bits")
        word |= (value & ((1 << width) - 1)) << low
    return word


class Instruction(NamedTuple):
    """The name of an instruction's opcode, and the value of each of its fields."""

    opcode: str
    fields: dict[str, int]


def decode(word: int) -> Instruction:
    """(opcode name, {field: value}) of a 256-bit integer.

    Raises
    ------
    ValueError
        if no instruction has this opcode.

    >>> decode(encode("PASS", rows=3, y=-1)).fields["y"]
    -1
    """
    number = word & 0xF
    for opcode, value in OPCODES.items():
        if value == number:
            break
    else:
        raise BadValue(f"no instruction has opcode {number}")
    fields = {}
    for name, (low, width) in _LAYOUTS[opcode].items():
        value = (word >> low) & ((1 << width) - 1)
        if is_signed(opcode, name) and value >> (width - 1):
            value -= 1 << width
        fields[name] = value
    return Instruction(opcode, fields)
