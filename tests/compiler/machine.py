"""What a program means, in plain NumPy and without time: each unit takes its instructions in order, tokens hold it back.

Beyond that nothing is promised, so the machine lets any unit go next that can, at random. A program whose tokens
allow a race gives wrong integers under some order, and one that can lock up does.
"""

import numpy as np

from esbflow.engine_facts import (
    IMAGE_DESTINATION,
    IMAGE_TABLE_DESTINATION,
    LEVEL_ENTRIES,
    LEVEL_ROWS,
    RESIDUAL_PLANE,
    SLOT_BYTES,
    STEP_COUNT,
    STEP_FIELDS,
    STEP_SHIFT,
    TABLE_DESTINATION,
    TAPS,
    array_offset,
    burst_lengths,
    channel_largest,
    channel_offset,
    dot_largest,
    output_digits,
    residual_digits,
    residual_planes,
    tap_value,
    weight_bits,
)
from esbflow.instructions import decode
from esbflow.numbers import ESB, Signed, Unsigned
from esbflow.registers import MAPS, REGIONS
from esbflow.requantizer import constant_fields, multiplicand_bits
from esbflow.runtime import layout
from esbflow.runtime.images import table_rows, write_lines
from esbflow.runtime.program_file import outputs_of

UNIT_OF = {"LOAD": "load", "WEIGHTS": "weights", "PASS": "compute", "CHANNEL": "compute", "DRAIN": "store", "STAMP": "store", "END": "store", "UNFOLD": "load"}
SEMAPHORE_LIMIT = 4095


def _each(function, *results):
    """`function` of outputs, or of each of several by name."""
    if isinstance(results[0], dict):
        return {name: function(*(result[name] for result in results)) for name in results[0]}
    return function(*results)


class Stuck(Exception):
    """No unit can go on."""


class Machine:
    """Memory, buffers and tokens of one slice of an engine that runs one program; `run` gives its output.

    number : of the slice, where slices work on stripes of one image.
    """

    def __init__(self, program, number=0):
        self.program, self.config, self.number = program, program.config, number
        sizes = {name: size for name, size in program.meta["regions"].items()}
        # What no one wrote is not zero.
        self.memory = {name: np.full(sizes.get(name, 0), 0xA5, np.uint8) for name in REGIONS}
        self.memory[MAPS] = np.full(program.config.map_beats * 16, 0xA5, np.uint8)
        self.memory["weights"] = np.asarray(program.weights, np.uint8)
        config = self.config
        self.activations = np.full((2, config.activation_beats * 16), 0x5A, np.uint8)
        self.residuals = np.full((2 * residual_planes(config), config.residual_beats * 16), 0x5A, np.uint8)
        self.slots = np.full(config.weight_slots * config.tile_beats * 16, 0x5A, np.uint8)
        self.constants = np.full((2, config.tile_channels * 16), 0x5A, np.uint8)
        self.table = np.full(LEVEL_ROWS * config.weight_ports * 16, 0x5A, np.uint8)
        self.levels = np.full(config.image_beats * 16, 0x5A, np.uint8)
        self.image_table, self.steps = np.full(256, 0x5A, np.uint8), [{}] * STEP_COUNT
        self.accumulators = np.full((2, config.accumulator_depth, config.cols), 0x5A5A, np.int64)
        self.tile, self.weights, self.books, self.taps = None, None, [None, None], None
        self.tokens, self.highest, self.others = {}, {}, []
        self.freed = []  # slots, in the order of their tokens

    def run(self, images, order=None):
        """Outputs (batch, c, h, w), or {name: output} of several. `order`: a random generator that chooses who goes next; None is program order.

        Slices do the same with images of their own, so here one machine does it after the other. With stripes of one image
        slices share the memory, and all carry out an instruction before the next one.
        """
        if self.program.meta["stripes"]:
            return self._run_stripes(images, order)
        slices, rounds = self.config.slices, self.config.rounds(self.program.meta["batch"])
        filled = np.concatenate([images, np.zeros((slices * rounds - len(images), *images.shape[1:]), images.dtype)])
        machines = [self, *(Machine(self.program) for _ in range(slices - 1))]
        parts = [machine._run(own, order) for machine, own in zip(machines, np.split(filled, slices))]
        return _each(lambda *own: np.concatenate(own)[:len(images)], *parts)

    def _run_stripes(self, images, order):
        batch = self.program.meta["batch"]
        filled = np.concatenate([images, np.zeros((batch - len(images), *images.shape[1:]), images.dtype)])
        self.others = [Machine(self.program, number) for number in range(1, self.config.slices)]
        for other in self.others:
            other.memory = self.memory
        return _each(lambda output: output[:len(images)], self._run(filled, order))

    def _run(self, images, order):
        meta = self.program.meta
        if "raw" in meta["input"]:
            write_lines(self.memory["input"], images, meta["input"]["raw"])
            rows = table_rows(self.program.table, meta["input"]["raw"])
            self.memory["input"][-rows.size:] = rows
        else:
            self._fill_input(np.moveaxis(images, 3, 1) if meta["input"].get("channels_last") else images, meta)
        self._execute(order)
        found = {name: layout.unpack_output([self.memory["output"]], output, len(images), self.config)
                 for name, output in outputs_of(meta).items()}
        return found if "outputs" in meta else found["output"]

    def _fill_input(self, images, meta):
        codes = layout.fold_windows(layout.encode_images(images, self.program.table), meta["input"])
        packed = layout.pack(codes, self.config.rows, meta["input"]["digits"], meta["input"]["pitch"], self.config.digit_bits,
                             layout.space_of(meta["input"]))
        _fill_rows(packed, meta["input"], len(images), self.config.rows)
        assert packed.size == meta["regions"]["input"]
        self.memory["input"][:] = packed

    def _execute(self, order):
        instructions = [decode(word) for word in self.program.words]
        assert [opcode for opcode, _ in instructions].count("END") == 1 and instructions[-1][0] == "END"
        if order is None:
            for opcode, fields in instructions:
                if not self._ready(opcode, fields):
                    raise Stuck(f"{opcode} {fields} waits for what only comes later")
                self._step(opcode, fields)
            return
        queues = {unit: [i for i in instructions if UNIT_OF[i[0]] == unit] for unit in set(UNIT_OF.values())}
        places, favour = dict.fromkeys(queues, 0), 0
        while any(places[unit] < len(queues[unit]) for unit in queues):
            able = sorted(unit for unit in queues if places[unit] < len(queues[unit])
                          and self._ready(*queues[unit][places[unit]]))
            if not able:
                raise Stuck(f"no unit can go on: {places}")
            # Long runs of one unit, as well as fair turns.
            if favour == 0:
                favour, weights = int(order.integers(1, 60)), order.random(len(queues)) ** 3
            favour -= 1
            unit = max(able, key=lambda u: weights[sorted(queues).index(u)] * order.random())
            self._step(*queues[unit][places[unit]])
            places[unit] += 1
        assert not any(n for name, n in self.tokens.items() if name.endswith("full")), "something loaded is never used"

    # -- tokens -------------------------------------------------------------------------------------------------
    @staticmethod
    def _waits(opcode, f):
        if opcode in ("LOAD", "WEIGHTS"):
            kind = _kind(opcode, f)
            return [(f"{kind}_free", f["wait_free"]), ("stores", f["wait_stores"])]
        if opcode == "UNFOLD":
            return [("activations_free", f["wait_free"]), ("image_full", f["wait_image"])]
        if opcode in ("PASS", "CHANNEL"):
            return [("weights_full", f["wait_weights"]), ("activations_full", f["wait_activations"]),
                    ("accumulators_free", f["wait_accumulators"])]
        if opcode == "DRAIN":
            return [("accumulators_full", 1), ("constants_full", 1), ("residual_full", f["residual"])]
        return []

    @staticmethod
    def _posts(opcode, f):
        if opcode in ("LOAD", "WEIGHTS"):
            return [(f"{_kind(opcode, f)}_full", f["post_full"])]
        if opcode == "UNFOLD":
            return [("activations_full", f["post_full"])]
        if opcode in ("PASS", "CHANNEL"):
            return [("weights_free", f["post_weights"]), ("activations_free", f["post_activations"]),
                    ("accumulators_full", f["post_accumulators"])]
        if opcode == "DRAIN":
            return [("accumulators_free", 1), ("constants_free", 1), ("residual_free", f["residual"]),
                    ("stores", f["post_store"])]
        return []

    def _ready(self, opcode, fields):
        return all(self.tokens.get(name, 0) >= count for name, count in self._waits(opcode, fields))

    def _step(self, opcode, fields):
        for name, count in self._waits(opcode, fields):
            self.tokens[name] = self.tokens.get(name, 0) - count
            if name == "weights_free" and count:
                assert self.freed.pop(0) * self.config.tile_beats == fields["address"], "the token is of another slot"
        for slice_ in (self, *self.others):
            getattr(slice_, f"_{opcode.lower()}")(fields)
        for name, count in self._posts(opcode, fields):
            self.tokens[name] = self.tokens.get(name, 0) + count
            if name == "weights_free" and count:
                self.freed.append(fields["slot"])
            self.highest[name] = max(self.highest.get(name, 0), self.tokens[name])
            assert self.tokens[name] <= SEMAPHORE_LIMIT
            assert name != "weights_free" or self.tokens[name] <= self.config.weight_slots, "a slot was given back twice"

    def _apart(self, f):
        """Beats that the slice's data lie behind the first one's."""
        return 256 * f.get("apart", 0) * self.number

    # -- instructions -------------------------------------------------------------------------------------------
    def _transfer(self, f, target):
        source, size, at = self.memory[(*REGIONS, MAPS)[f["region"]]], 16 * f["beats"], 16 * f["address"]
        for segment in range(f["segments"]):
            start = 16 * (f["offset"] + segment * f["stride"] + self._apart(f))
            assert start + size <= source.size and at + size <= target.size
            target[at:at + size] = source[start:start + size]
            at += size

    def _load(self, f):
        if f["destination"] == IMAGE_DESTINATION:
            self._transfer(f, self.levels)
            loaded = slice(16 * f["address"], 16 * (f["address"] + f["beats"] * f["segments"]))
            self.levels[loaded] = self.image_table[self.levels[loaded]]
            return None
        if f["destination"] == IMAGE_TABLE_DESTINATION:
            rows = np.zeros(16 * STEP_COUNT, np.uint8)
            self._transfer(f, rows)
            assert f["beats"] == STEP_COUNT and f["segments"] == 1
            self.image_table = rows.reshape(-1, 16)[:, :4].reshape(-1)
            self.steps = [_step(int.from_bytes(row[STEP_SHIFT // 8:].tobytes(), "little")) for row in rows.reshape(-1, 16)]
            return None
        if f["destination"] < 2:
            return self._transfer(f, self.activations[f["destination"]])
        bank, plane = divmod(f["destination"] - 2, 2)
        higher, address = divmod(f["address"], RESIDUAL_PLANE)
        self._transfer({**f, "address": address}, self.residuals[bank * residual_planes(self.config) + 2 * higher + plane])

    def _unfold(self, f):
        """Bytes, slot by slot; then their digits."""
        config = self.config
        made = []
        for row in range(f["rows"]):
            for group in range(f["groups"]):
                slot = [0] * 2 * SLOT_BYTES
                for step in self.steps[f["first"]:f["first"] + f["steps"]]:
                    y = f["y"] + row * f["y_step"] + step["y"]
                    line = f["line"] + row * f["row_beats"] + step["line"]
                    for k in range(step["length"]):
                        x = f["x"] + group * f["x_step"] + step["x"] + k
                        if 0 <= y < f["height"] and 0 <= x < f["width"]:
                            slot[step["place"] + k] = int(self.levels[(16 * line + x) % self.levels.size])
                    if step["ends"]:
                        made += slot[:SLOT_BYTES]
                        slot = slot[SLOT_BYTES:] + [0] * SLOT_BYTES
                assert not any(slot), "a slot is not complete"
        levels = np.array(made, np.uint8)
        half = self.activations[f["half"]]
        for digit in range(f["digits"]):
            packed = layout.pack_digits(levels >> config.digit_bits * digit & (1 << config.digit_bits) - 1, config.digit_bits)
            at = 16 * (f["address"] + digit * f["plane_step"])
            assert packed.size % 16 == 0 and at + packed.size <= half.size
            half[at:at + packed.size] = packed

    def _weights(self, f):
        targets = {0: self.slots, 1: self.constants[0], 2: self.constants[1], TABLE_DESTINATION: self.table}
        target = targets[f["destination"]]
        self._transfer(f, target)
        ports = self.config.weight_ports
        at = f["address"]
        for segment in range(f["segments"]):
            # In memory a burst is one part for each port; beats k, k + ports, ... are port k's.
            offset = f["offset"] + segment * f["stride"]
            for length in burst_lengths(offset, f["beats"], self.config.max_burst * ports):
                burst = target[16 * at:16 * (at + length)]
                burst[:] = burst.reshape(ports, -1, 16).transpose(1, 0, 2).reshape(-1)
                at += length

    def _words(self, buffer, index):
        """Digits (..., rows) of the words at `index`."""
        return layout.unpack_digits(buffer.reshape(-1, self.config.word_bits // 8)[index], self.config.digit_bits)

    def _pass(self, f):
        config = self.config
        if not f["keep"]:
            start = f["slot"] * config.tile_beats * 16
            packed = self.slots[start:start + config.rows * config.cols // 2]
            packed_codes = np.stack([packed & 15, packed >> 4], axis=1)
            self.tile = packed_codes.reshape(config.cols, config.rows)
            if config.array == "table":
                self.tile = packed_codes.reshape(-1, config.cols, 4).transpose(1, 0, 2).reshape(config.cols, config.rows)
            if f["load_book"]:
                self.books[f["book"]] = [_entry(config, f["codebook"] >> (5 * i) & 31) for i in range(16)]
            self.weights = np.array(self.books[f["book"]])[self.tile]
        r, c = np.mgrid[:self._rows(f), :f["cols"]]
        y, x = f["y"] + self.number * f["stripe"] + r % f["rows"] * f["stride_y"], f["x"] + c * f["stride_x"]
        inside = (y >= 0) & (y < f["in_rows"]) & (x >= 0) & (x < f["in_cols"])
        address = np.where(inside, f["address"] + r * f["row_step"] + c * f["stride_x"], 0)
        digits = np.where(inside[..., None], self._words(self.activations[f["half"]], address), 0)
        if f["signed"]:
            digits = (digits ^ config.sign_offset) - config.sign_offset
        pixels = digits.reshape(-1, config.rows)
        # The array's dots are not negative; the compiler takes off b what they have too much.
        total = pixels @ self.weights.T + array_offset(config, self.weights, bool(f["signed"]))
        assert total.min() >= 0 and total.max() <= dot_largest(config)
        bank = self._bank(f, len(pixels))
        values = (0 if f["first"] else bank) + (total << (config.shift_step * f["shift"]))
        assert values.max() < 1 << config.accumulator_width
        bank[:] = values

    def _channel(self, f):
        config, width = self.config, self.config.channel_unit
        assert width and f["part"] < config.channel_blocks
        if not f["keep"]:
            start = f["slot"] * config.tile_beats * 16
            words = self.slots[start:start + 8 * width].copy().view("<u8")
            self.taps = np.array([[tap_value(config, int(word) >> 5 * tap & 31) for tap in range(TAPS)] for word in words])
        outputs = (f["cols"] - f["tap_cols"]) // (f["gap"] + 1) + 1
        assert f["cols"] == (outputs - 1) * (f["gap"] + 1) + f["tap_cols"]
        r, c = np.mgrid[:self._rows(f), :outputs]
        column = c * (f["gap"] + 1) + f["tap_cols"] - 1  # the newest of each output
        total, largest = 0, None
        for row in range(f["tap_rows"]):
            for age in range(f["tap_cols"]):
                y = f["y"] + self.number * f["stripe"] + r % f["rows"] * f["stride_y"] + row * f["tap_step_y"]
                x = f["x"] + (column - age) * f["stride_x"]
                inside = (y >= 0) & (y < f["in_rows"]) & (x >= 0) & (x < f["in_cols"])
                address = f["address"] + r * f["row_step"] + row * f["tap_step"] + (column - age) * f["stride_x"]
                digits = self._words(self.activations[f["half"]], np.where(inside, address, 0))
                first = f["part"] * width % config.rows
                digits = digits[..., first:first + width] ^ (config.sign_offset if f["signed"] else 0)
                # What lies outside is zero in a sum and less than anything in a maximum.
                present = np.where(inside[..., None], digits, 0)
                largest = present if largest is None else np.maximum(largest, present)
                total = total + np.where(inside[..., None], digits - (config.sign_offset if f["signed"] else 0), 0) * self.taps[:, 3 * row + age]
        sums = largest if f["maximum"] else total + channel_offset(config, self.taps, bool(f["signed"]))
        sums = sums.reshape(-1, width)
        assert sums.min() >= 0 and sums.max() <= channel_largest(config)
        bank = self._bank(f, len(sums))
        values = np.zeros((len(sums), config.cols), np.int64) if f["first"] else bank.copy()
        first = f["part"] * width % config.cols
        values[:, first:first + width] += sums << (config.shift_step * f["shift"])
        assert values.max() < 1 << config.accumulator_width
        bank[:] = values

    def _rows(self, f):
        """Rows of all images that a pass goes over."""
        assert f["images"] if self.config.batch_tiles else not f["images"]
        return f["rows"] * (f["images"] or 1)

    def _bank(self, f, pixels):
        """The accumulators of a pass's pixels, as a view."""
        step = f["acc_gap"] + 1
        bank = self.accumulators[f["bank"]][f["acc_first"]:f["acc_first"] + (pixels - 1) * step + 1:step]
        assert len(bank) == pixels
        return bank

    def _constants(self, bank):
        """{field: one value a channel}"""
        words = [int.from_bytes(word.tobytes(), "little") for word in self.constants[bank].reshape(-1, 16)]
        fields, low = {}, 0
        for name, bits in constant_fields(self.config):
            fields[name] = np.array([word >> low & (1 << bits) - 1 for word in words])
            low += bits
        return fields

    def _drain(self, f):
        config = self.config
        k = self._constants(f["constants"])
        width = config.requantize_width
        signed = lambda v, bits: (v ^ (1 << bits - 1)) - (1 << bits - 1)  # noqa: E731
        if f["esb"]:
            assert config.esb_output
            exponent_bits = (f["octaves"] + 2).bit_length() - 1
            form = ESB(f["significand"] + exponent_bits + f["signed"], f["significand"], bool(f["signed"]))
        else:
            form = (Signed if f["signed"] else Unsigned)(f["bits"])
        rows, cols, channels = f["acc_rows"], f["acc_cols"], f["planes"] * config.rows
        acc = self.accumulators[f["bank"]][:rows * cols * config.accumulators_per_pixel]
        acc, value = acc.reshape(rows, cols, config.tile_channels), 0
        if f["residual"]:
            assert config.residual and f["kernel_y"] == f["kernel_x"] == f["stride_y"] == f["stride_x"] == 1
            pitch = -(-cols // config.words_per_beat) * config.words_per_beat
            p, r, c = np.mgrid[:f["planes"], :rows, :cols]
            for digit in range(count := residual_digits(f["residual_digits"])):
                plane = self.residuals[residual_planes(config) * f["residual_bank"] + digit]
                value = value | self._words(plane, (p * rows + r) * pitch + c) << (config.digit_bits * digit)
            top = 1 << config.digit_bits * count - 1
            if f["residual_signed"] == (top < 128):
                value = value ^ top
            value = signed(value, 8).transpose(1, 2, 0, 3).reshape(rows, cols, channels)
            value = np.concatenate([value, np.zeros((rows, cols, config.tile_channels - channels), np.int64)], axis=-1)
        # As the lanes: all is modulo 2**width.
        if config.requantizer == "shift":
            r = np.where(k["residual_negative"] == 1, 127 - value, value + 128) << k["residual_shift"]
            total = np.where(k["negative"] == 1, ~acc, acc) + np.where(k["residual_off"] == 1, 0, r) * config.residual
        else:  # each row of the multipliers adds its offset
            total = acc * signed(k["m"], 12) + value * signed(k["n"], 12)
            total += sum(2 << multiplicand_bits(config) + place for place in range(0, 12, 2))
            total += config.residual * sum(2 << 12 + place for place in range(0, 8, 2))
        total, s = total + k["b"], k["s"]
        total = signed(total & (1 << width) - 1, width)
        if not f["esb"]:  # b holds the half already
            total = total - np.where(s > 0, 1 << np.maximum(s - 1, 0), 0)
        levels = form.round_shift(total, np.broadcast_to(s, total.shape))[..., :channels]
        y, x = np.mgrid[:f["out_rows"], :f["out_cols"]]
        pooled = None
        for ky in range(f["kernel_y"]):
            for kx in range(f["kernel_x"]):
                # Window coordinates clamp to the tile.
                yy = np.clip(y * f["stride_y"] - f["pad_y"] + ky, 0, rows - 1)
                xx = np.clip(x * f["stride_x"] - f["pad_x"] + kx, 0, cols - 1)
                taken = levels[yy, xx]
                pooled = taken if pooled is None else np.maximum(pooled, taken)
        if f["table"]:
            assert config.function_table and pooled.min() >= -128 and pooled.max() < 256 and f["digits"] * config.digit_bits <= 8
            entries = self.table.reshape(-1, 16)[:, :4 // config.weight_ports].reshape(LEVEL_ENTRIES)
            pooled = entries[pooled & 255].astype(np.int64)
        memory = self.memory[(*REGIONS, MAPS)[f["region"]]]
        for plane in range(f["planes"]):
            block = pooled[..., plane * config.rows:(plane + 1) * config.rows]
            for digit in range(output_digits(f["digits"])):
                digits = (block >> (config.digit_bits * digit) & config.largest_digit).astype(np.uint8)
                data = layout.pack_digits(digits, config.digit_bits).reshape(f["segments"], -1)
                assert data.shape[1] == 16 * f["segment_beats"]
                base = f["offset"] + plane * f["plane_stride"] + digit * f["digit_stride"] + self._apart(f)
                for segment, content in enumerate(data):
                    start = 16 * (base + segment * f["segment_stride"])
                    assert start + content.size <= memory.size
                    memory[start:start + content.size] = content

    def _stamp(self, f):
        assert 16 * f["offset"] < self.memory["log"].size and (f["apart"] * 4096 >= self.memory["log"].size
                                                                if self.program.meta["stripes"] else not f["apart"])

    def _end(self, f):
        pass


def _entry(config, bits):
    """The integer of a 5-bit codebook entry."""
    if config.array == "shiftadd" and config.weight_planes[1]:
        planes = config.weight_planes[0]
        magnitude = bits & ((1 << planes) - 1)
        return -magnitude if bits >> planes else magnitude
    width = weight_bits(config)
    return (bits ^ 1 << width - 1) - (1 << width - 1) if bits < 1 << width else None


def _kind(opcode, fields):
    if opcode == "LOAD" and fields["destination"] >= IMAGE_DESTINATION:
        return "image"
    if opcode == "LOAD":
        return "residual" if fields["destination"] >= 2 else "activations"
    return "constants" if fields["destination"] else "weights"


def _step(word):
    fields, low = {}, 0
    for name, bits in STEP_FIELDS:
        value = word >> low & (1 << bits) - 1
        fields[name] = value - (1 << bits) if name == "x" and value >> bits - 1 else value
        low += bits
    return fields


def _fill_rows(packed, meta, images, rows):
    """Write something into the rows of the input's memory that are not the map's."""
    planes = -(-meta["channels"] // rows) * meta["digits"]
    grid = packed.reshape(planes * images, meta["rows"], -1)
    grid[:, :meta["first_row"]] = grid[:, meta["first_row"] + meta["height"]:] = 0xA5
