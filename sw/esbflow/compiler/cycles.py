"""The cycle model: when every instruction of a program starts and ends, exactly; here on ideal memory, in ddr_cycles.py
on memory whose ports share a budget.

Units take their instructions in order, so one walk over the program computes all times: a token's k-th taker
waits for its k-th post, which stands earlier in the program. The constants are the timings of the blocks in
engine_facts; tests hold the sum against the RTL, cycle for cycle.

Ideal memory: ready is always high, the first beat of a read is on offer `latency` cycles after its address was taken
or one cycle after the previous burst's last beat, then one beat a cycle; a write is answered `latency` cycles after
its last beat. Cycle 0 is the first cycle after the doorbell.

What a unit does with an instruction is a generator: it yields the name of what it needs and does not know yet. On ideal
memory nothing is unknown that stands earlier in the program.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from esbflow.compiler.program import Program
from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import (
    ACCUMULATE_LATENCY,
    ACTIVATION_LATENCY,
    BEAT_TO_WRITE,
    BOOK_CYCLES,
    CATCH_CYCLES,
    COUNT_CYCLES,
    CREDIT_CYCLES,
    FETCH_BUFFERED,
    FETCH_BURST,
    FIFO_LATENCY,
    FIFO_PLACE_CYCLES,
    HAZARD_CYCLES,
    IMAGE_DESTINATION,
    JOIN_CYCLES,
    MAP_ANSWER_CYCLES,
    MAP_READ_CYCLES,
    OUTSTANDING_READS,
    OUTSTANDING_WRITES,
    PORT_CYCLES,
    REQUEST_CYCLES,
    SPLIT_CYCLES,
    SPREAD_CYCLES,
    TOKEN_CYCLES,
    UNFOLD_LATENCY,
    burst_lengths,
    compute_latency,
    load_tail,
    output_digits,
)
from esbflow.errors import BadValue
from esbflow.instructions import CHANNEL, DRAIN, END, INSTRUCTION_BEATS, LOAD, PASS, STAMP, UNFOLD, WEIGHTS, decode
from esbflow.registers import LOG_BEATS, MAPS_REGION
from esbflow.requantizer import drain_latency

SETUP_CYCLES = 2  # Drain
LOOK_CYCLES = 1  # a loader, the stream stage and the drain act so long after what they wait for is there


@dataclass
class Unit:
    """What the model knows of one unit: when its queue's places come free, and what it was doing."""

    popped: list = field(default_factory=list)
    free: int = 0
    busy: int = 0


@dataclass(frozen=True)
class Cycles:
    """`total` from doorbell to done; `stamps` the cycle counter in each layer's log record.

    `layers`: per layer number the cycles in which the array took pixels ("compute") or waited, by reason. Of those that it
    waited for "weights" these were on chip already in "reload".
    """

    total: int
    stamps: list
    layers: dict

    @property
    def compute(self) -> int:
        """Cycles in which the array is at work."""
        return sum(layer["compute"] for layer in self.layers.values())

    @property
    def per_layer(self) -> list:
        """Cycles of each layer, in the program's order."""
        return [after - before for before, after in zip([0, *self.stamps], self.stamps)]


class _ReadBus:
    """A ReadPort, its splitter's output and ideal memory behind it.

    Of several ports that share bursts the splitter asks a cycle ahead whether all have a place.
    """

    def __init__(self, latency: int, ports: int = 1):
        self.latency = latency
        self.place = FIFO_PLACE_CYCLES + (LOOK_CYCLES if ports > 1 else 0)
        self.last = -1  # bus cycle of the latest burst's last beat
        self.ends: deque[int] = deque(maxlen=OUTSTANDING_READS)
        self.beats = 0

    def burst(self, earliest: int, length: int, on_chip: bool = False) -> tuple[int, int]:
        """(cycle in which the port takes the burst, bus cycle of its first beat)."""
        taken = earliest
        if len(self.ends) == OUTSTANDING_READS:
            taken = max(taken, self.ends[0] + self.place)
        first = max(taken + (MAP_READ_CYCLES if on_chip else 1 + self.latency), self.last + 1)
        self.last = first + length - 1
        self.ends.append(self.last)
        self.beats += length
        return taken, first


class _WriteBus:
    """A WritePort, its splitter and ideal memory behind it."""

    def __init__(self, latency: int):
        self.latency = latency
        self.free = 0  # splitter
        self.last_w = -1
        self.last_b = -1
        self.answers: deque[int] = deque(maxlen=OUTSTANDING_WRITES)

    def burst(self, earliest: int, length: int, on_chip: bool = False) -> int:
        """Cycle in which the port takes the burst, which was there with its beats in `earliest`.

        `last_b` becomes the bus cycle of its answer.
        """
        taken = earliest + LOOK_CYCLES
        if len(self.answers) == OUTSTANDING_WRITES:
            taken = max(taken, self.answers[0] + FIFO_PLACE_CYCLES)
        self.last_w = max(taken + FIFO_LATENCY, self.last_w + 1) + length - 1
        self.last_b = max(self.last_w + (MAP_ANSWER_CYCLES if on_chip else self.latency), self.last_b + 1)
        self.answers.append(self.last_b)
        return taken


class CycleModel:
    """Walks a program; `run()` returns Cycles. `latency` is the memory's, in cycles."""

    def __init__(self, config: EngineConfig, words: list, latency: int = 40):
        self.config = config
        self.words = words
        self.latency = latency
        self.buses = {name: _ReadBus(latency, ports) for name, ports in (("program", 1), ("load", 1),
                                                                         ("weights", config.weight_ports))}
        self.store = _WriteBus(latency)
        self.units = {name: Unit() for name in ("load", "weights", "compute", "store")}
        self.tokens: dict[str, deque] = defaultdict(deque)
        self.dispatched: list[int] = []
        self.arrived: deque[int] = deque()  # instructions: the earliest cycle in which each could be dispatched
        self.stamps: list[int] = []
        self.layers: dict = {}
        self.total = None
        self._staged_free = 0
        self._stream_free = 0
        self._compute = compute_latency(config)
        self._drain_latency = drain_latency(config)
        self._drain_begun = -1
        self._spread_free = {"load": 0, "store": 0}

    # -- what units tell each other ----------------------------------------------------------------------
    def _post(self, name: str, cycle: int) -> None:
        self.tokens[name].append(cycle + TOKEN_CYCLES)

    def _take(self, name: str, count: int = 1):
        """The cycle from which `count` tokens can be taken."""
        queue = self.tokens[name]
        while len(queue) < count:
            yield name
        cycle = 0
        for _ in range(count):
            cycle = queue.popleft()
        return cycle

    def _pop(self, unit: Unit, cycle: int) -> None:
        """The unit takes an instruction off its queue."""
        unit.popped.append(cycle)

    # -- fetch --------------------------------------------------------------------------------------------
    def _fetch(self):
        promised = 0
        left, offset = len(self.words), 0
        ready = REQUEST_CYCLES  # the splitter can accept
        burst_limit = min(FETCH_BURST, self.config.max_burst)
        while left:
            run = min(left, 1 << 14)
            earliest = ready + SPLIT_CYCLES
            for length in burst_lengths(offset, INSTRUCTION_BEATS * run, burst_limit):
                promised += length // INSTRUCTION_BEATS
                if promised > FETCH_BUFFERED:
                    while len(self.dispatched) < promised - FETCH_BUFFERED:
                        yield "dispatched"
                    earliest = max(earliest, self.dispatched[promised - FETCH_BUFFERED - 1] + FIFO_PLACE_CYCLES)
                earliest += CREDIT_CYCLES
                earliest = self._ask(earliest, length) + SPLIT_CYCLES
            ready = earliest - SPLIT_CYCLES + 1
            left -= run
            offset += INSTRUCTION_BEATS * run

    def _ask(self, earliest: int, length: int) -> int:
        """The cycle in which the program's port takes a burst."""
        taken, first = self.buses["program"].burst(earliest, length)
        self.arrived.extend(self._arrival(first + beat) for beat in range(1, length, INSTRUCTION_BEATS))
        return taken

    @staticmethod
    def _arrival(cycle: int) -> int:
        """When an instruction whose last beat was on the bus in `cycle` can be dispatched."""
        return cycle + BEAT_TO_WRITE + FIFO_LATENCY

    def _handlers(self) -> dict:
        """Of each opcode the unit, and what it does with the instruction."""
        return {LOAD: ("load", self._load), WEIGHTS: ("weights", self._weights), PASS: ("compute", self._pass),
                CHANNEL: ("compute", self._pass), DRAIN: ("store", self._drain), STAMP: ("store", self._stamp),
                END: ("store", self._end), UNFOLD: ("load", self._unfold)}

    def run(self) -> Cycles:
        """Go through the program once; the cycles of all."""
        handlers, depth = self._handlers(), self.config.queue_depth
        previous = -1
        fetch = self._fetch()
        for word in self.words:
            name, act = handlers[word & 0xF]
            unit = self.units[name]
            while not self.arrived:
                next(fetch, None)  # it may be done with that
            dispatch = max(self.arrived.popleft(), previous + 1)
            if len(unit.popped) >= depth:
                dispatch = max(dispatch, unit.popped[-depth] + FIFO_PLACE_CYCLES)
            self.dispatched.append(dispatch)
            previous = dispatch
            for missing in act(unit, decode(word).fields, dispatch + FIFO_LATENCY):
                self._hang(missing)
            if self.total is not None:
                break
        return self._result()

    @staticmethod
    def _hang(name: str):
        raise BadValue(f"the program waits for {name} and nothing before it posts that")

    def _result(self) -> Cycles:
        if self.total is None:
            raise BadValue("the program has no END instruction")
        return Cycles(total=self.total, stamps=self.stamps, layers=self.layers)

    # -- loaders ------------------------------------------------------------------------------------------
    def _transfer(self, unit: Unit, fields: dict, accept: int, full: str):
        """Reads what the instruction accepted in `accept` asks for, and posts the token `full` if it wants that."""
        loads = unit is self.units["load"]
        bus, ports = (self.buses["load"], 1) if loads else (self.buses["weights"], self.config.weight_ports)
        earliest, on_chip = accept + SPLIT_CYCLES, fields["region"] == MAPS_REGION
        for length in self._read_bursts(fields, ports):
            def port(cycle, length=length // ports):
                return bus.burst(cycle, length, on_chip)[0]  # each of the ports brings as many: one stands for all
            taken = self._burst(port, earliest, "load") if loads else port(earliest)
            earliest = taken + SPLIT_CYCLES
        unit.free = taken + 1
        if fields["post_full"]:
            self._post(full, bus.last + self._written_after(loads))
        yield from ()

    def _read_bursts(self, fields: dict, ports: int):
        """Lengths of a transfer's bursts, each of all ports together."""
        offset = fields["offset"]
        for _ in range(fields["segments"]):
            yield from burst_lengths(offset, fields["beats"], self.config.max_burst * ports)
            offset += fields["stride"]

    def _written_after(self, loads: bool) -> int:
        """From the bus cycle of a transfer's last beat to its token."""
        return BEAT_TO_WRITE + (JOIN_CYCLES if loads and self.config.slices > 1 else 0)

    def _burst(self, port, earliest: int, spread: str) -> int:
        """The cycle in which the splitter's burst is taken. `port` gives that in which the port takes it.

        With several slices the burst waits in a register, and a port takes it for each of its slices.
        """
        if self.config.slices == 1:
            return port(earliest)
        taken = max(earliest, self._spread_free[spread])
        offered = taken + SPREAD_CYCLES
        for number in range(self.config.slices_per_port):
            # The port looks for a burst's beats for a cycle, but not for those of its second slice.
            last = port(offered - (LOOK_CYCLES if spread == "store" and number else 0))
            offered = last + PORT_CYCLES
        self._spread_free[spread] = offered
        return taken

    def _load(self, unit: Unit, fields: dict, ready: int):
        kind = "residual" if fields["destination"] >= 2 else "activations"
        if fields["destination"] >= IMAGE_DESTINATION:
            kind = "image"
        here = ready
        if fields["wait_free"]:
            here = max(here, (yield from self._take(f"{kind}_free")))
        if fields["wait_stores"]:
            here = max(here, (yield from self._take("stores", fields["wait_stores"])))
        accept = max(here + LOOK_CYCLES, unit.free)
        self._pop(unit, accept)
        yield from self._transfer(unit, fields, accept, f"{kind}_full")

    def _unfold(self, unit: Unit, fields: dict, ready: int):
        here = ready
        if fields["wait_free"]:
            here = max(here, (yield from self._take("activations_free")))
        if fields["wait_image"]:
            here = max(here, (yield from self._take("image_full")))
        accept = max(here + LOOK_CYCLES, unit.free)
        self._pop(unit, accept)
        last = accept + fields["rows"] * fields["groups"] * fields["steps"] + UNFOLD_LATENCY + fields["digits"]
        unit.free = last + 1
        if fields["post_full"]:
            self._post("activations_full", last)

    def _weights(self, unit: Unit, fields: dict, ready: int):
        kind = "constants" if fields["destination"] else "weights"
        here = ready
        if fields["wait_free"]:
            here = max(here, (yield from self._take(f"{kind}_free")))
        accept = max(here + LOOK_CYCLES, unit.free)
        self._pop(unit, accept)
        yield from self._transfer(unit, fields, accept, f"{kind}_full")

    # -- sequencer ----------------------------------------------------------------------------------------
    def _pass(self, unit: Unit, fields: dict, ready: int):
        idle_from = self._stream_free
        accept = max(ready, self._staged_free)
        waited_instruction = accept
        if fields["wait_weights"]:
            accept = max(accept, (yield from self._take("weights_full")))
        self._pop(unit, accept)
        load_cycles = tail = 0
        channel = fields["opcode"] == CHANNEL
        if channel and not fields["keep"]:
            load_cycles = self.config.tap_load_cycles
        elif not fields["keep"]:
            load_cycles = self.config.tile_load_cycles + (BOOK_CYCLES if fields["load_book"] else 0)
            tail = load_tail(self.config)
        if fields["post_weights"]:
            self._post("weights_free", accept + load_cycles)
        here = accept + load_cycles + tail + 1  # the pass, and then its tokens
        take = max(here, self._stream_free)
        with_activations = take
        if fields["wait_activations"]:
            here = max(here, (yield from self._take("activations_full")))
            with_activations = max(take, here)
        with_bank = with_activations
        if fields["wait_accumulators"]:
            here = max(here, (yield from self._take("accumulators_free")))
            with_bank = max(with_bank, here)
        start = max(self._stream_free, here + LOOK_CYCLES)
        spent = self.layers.setdefault(fields["layer"], dict.fromkeys(
            ("compute", "instruction", "weights", "reload", "activations", "accumulators", "hazard"), 0))
        for reason, begin, end in (("instruction", idle_from, waited_instruction),
                                   ("weights", max(idle_from, waited_instruction), take),
                                   ("reload", max(idle_from, accept), take),
                                   ("activations", take, with_activations), ("accumulators", with_activations, with_bank)):
            spent[reason] += max(0, end - begin)
        rows = fields["rows"] * (fields["images"] if self.config.batch_tiles else 1)
        pixels = rows * fields["cols"]
        spent["compute"] += pixels
        last_pixel = start + pixels
        self._staged_free = start + 1
        # Bubbles follow the last output where there are fewer than the hazard's.
        outputs = rows * ((fields["cols"] - fields["tap_cols"]) // (fields["gap"] + 1) + 1) if channel else pixels
        bubbles = max(0, HAZARD_CYCLES - outputs)
        self._stream_free = last_pixel + bubbles
        spent["hazard"] += bubbles
        if fields["post_activations"]:
            self._post("activations_free", last_pixel)
        if fields["post_accumulators"]:
            self._post("accumulators_full", last_pixel + ACTIVATION_LATENCY + self._compute + ACCUMULATE_LATENCY)

    # -- drain --------------------------------------------------------------------------------------------
    def _held(self, unit: Unit, ready: int) -> int:
        """The cycle in which the drain takes an instruction that is in its queue from `ready` on, to begin it later."""
        taken = max(ready, self._drain_begun + 1)
        self._pop(unit, taken)
        return taken

    def _begin(self, cycle: int) -> int:
        """The drain begins the instruction that it has taken."""
        self._drain_begun = cycle
        return cycle

    def _drain(self, unit: Unit, fields: dict, ready: int):
        config = self.config
        taken = self._held(unit, ready)
        names, tokens = ("accumulators", "constants", *(("residual",) if fields["residual"] else ())), []
        for name in names:
            tokens.append((yield from self._take(f"{name}_full")))
        begin = self._begin(max(max(taken + 1, *tokens) + LOOK_CYCLES, unit.free))
        taps = fields["kernel_y"] * fields["kernel_x"]
        chunks_per_beat = AXI_BEAT_BITS // (config.digit_bits * config.requantize_lanes)
        digits, planes = output_digits(fields["digits"]), fields["planes"]
        now = begin + 1
        for digit in range(digits):
            for plane in range(planes):
                offset = fields["offset"] + plane * fields["plane_stride"] + digit * fields["digit_stride"]
                post = fields["post_store"] and (digit, plane) == (digits - 1, planes - 1)
                now = yield from self._plane(now, fields, offset, chunks_per_beat * taps, post)
        unit.free = now
        for name in names:
            self._post(f"{name}_free", now - 1)

    def _plane(self, now: int, fields: dict, offset: int, beat_cycles: int, post: bool):
        """Issues a plane's groups, a beat every `beat_cycles`, and orders its stores; gives the cycle after the last one."""
        ordered, starts = now + SETUP_CYCLES - 1, []
        for _ in range(fields["segments"]):
            starts.append(now + SETUP_CYCLES)
            now += SETUP_CYCLES + fields["segment_beats"] * beat_cycles
        last_b = self._stores(ordered, offset, fields["segment_beats"], fields["segment_stride"], starts, beat_cycles,
                              fields["region"] == MAPS_REGION)
        if post:
            self._post("stores", last_b + 1)
        yield from ()
        return now

    def _stores(self, ordered: int, offset: int, beats: int, stride: int, starts: list, beat_cycles: int,
                on_chip: bool = False) -> int:
        """One transfer of the writer: `starts` are the cycles in which each run's first group is issued."""
        earliest = max(ordered + FIFO_LATENCY, self.store.free) + SPLIT_CYCLES
        for start in starts:
            done = 0
            for length in burst_lengths(offset, beats, self.config.max_burst):
                done += length
                pushed = start + done * beat_cycles - 1 + self._drain_latency
                taken = self._store_burst(earliest, pushed + 1, length, on_chip)
                earliest = taken + SPLIT_CYCLES
            offset += stride
        self.store.free = taken + 1
        return self.store.last_b

    def _store_burst(self, earliest: int, here: int, length: int, on_chip: bool) -> int:
        """The cycle in which the splitter's burst is taken, whose beats are there from `here` on."""
        return self._burst(lambda cycle: self.store.burst(max(cycle, here), length, on_chip), earliest, "store")

    def _stamp(self, unit: Unit, fields: dict, ready: int):
        taken = self._held(unit, ready)
        begin = self._begin(max(taken + 1 + LOOK_CYCLES, unit.free))
        ordered = begin + self._drain_latency + 1
        self.stamps.append(ordered - COUNT_CYCLES)
        # Its beats leave one a cycle from ordered + 2 on: as if a run had been issued so much earlier.
        self._stores(ordered, fields["offset"], LOG_BEATS, 0, [ordered + 2 - self._drain_latency], 1)
        unit.free = ordered + 2 + LOG_BEATS
        yield from ()

    def _end(self, unit: Unit, fields: dict, ready: int):
        start = max(self._held(unit, ready) + 1 + LOOK_CYCLES, unit.free)
        answered = yield from self._answered()
        self.total = max(start + self._drain_latency + 3, answered + 2) + 1 + CATCH_CYCLES

    def _answered(self):
        """The bus cycle of the last write's answer."""
        yield from ()
        return self.store.last_b


def count_cycles(program: Program, latency: int = 40) -> Cycles:
    """Cycles of one run of `program` on ideal memory."""
    return CycleModel(program.config, program.words, latency).run()
