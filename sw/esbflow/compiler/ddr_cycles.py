"""The cycle model on memory whose ports share a budget, as a DDR controller's do: exact, too.

Units, tokens and queues are those of cycles.py. Memory is gone through cycle by cycle (shared_memory.py), and a unit that
needs what memory has not done yet waits until it has. Units are ahead of memory: whatever one does because of what memory
did in a cycle reaches memory in a later cycle.
"""

import heapq
from collections import deque
from fractions import Fraction
from functools import partial

from esbflow.compiler.cycles import LOOK_CYCLES, SETUP_CYCLES, CycleModel, Cycles
from esbflow.compiler.program import Program
from esbflow.compiler.shared_memory import DDR_BYTES, NEVER, Join, Port, SharedMemory, WritePort, channels
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import (
    COUNT_CYCLES,
    FIFO_LATENCY,
    FIFO_PLACE_CYCLES,
    MAP_ANSWER_CYCLES,
    MAP_READ_CYCLES,
    OUTSTANDING_READS,
    PORT_CYCLES,
    SPLIT_CYCLES,
    SPREAD_CYCLES,
    TRANSFERS,
    activation_masters,
    burst_lengths,
    weight_masters,
    write_room,
)
from esbflow.instructions import decode
from esbflow.registers import LOG_BEATS, MAPS_REGION


class SharedCycleModel(CycleModel):
    """As CycleModel, where all ports together move `bytes_per_cycle` at most."""

    def __init__(self, config: EngineConfig, words: list, latency: int = 40, bytes_per_cycle: Fraction | float = DDR_BYTES):
        super().__init__(config, words, latency)
        names = channels(config)
        writes = tuple(k for k, name in enumerate(names) if name.endswith(" write"))
        self._memory = SharedMemory(len(names), bytes_per_cycle, writes)
        number = {name: k for k, name in enumerate(names)}
        self._program, self._odd = number["program"], False
        self._readers = {
            name: [Port(number[master.removeprefix("m_axi_")], OUTSTANDING_READS) for master in masters]
            for name, masters in (("load", activation_masters(config)), ("weights", weight_masters(config)))}
        self._writers = [WritePort(k) for k in writes]
        self._waiting: dict = {}
        self._ready: list = []
        self._timers: list = []
        self._inboxes: dict[str, deque] = {name: deque() for name in (*self.units, "held")}
        self._spreading: set = set()  # whose bursts are on offer to slices
        self._begun = 0  # instructions of the drain
        self._orders: deque = deque()
        self._accepted: list[int] = []  # cycles in which the writer took an order
        self._ordered = 0
        self._open_orders = 0
        self._last_answer = -1
        self._pushed: list[int] = []  # cycles in which a beat came to the writer
        self._counted = 0  # of those, what the drain has counted

    # -- who runs when ------------------------------------------------------------------------------------
    def run(self) -> Cycles:
        """Go through the program once; the cycles of all, in which ports have waited for each other."""
        self._ready = [self._fetch(), self._dispatch(), self._write(), self._hold(), *map(self._work, self.units)]
        while self.total is None:
            while self._ready:
                steps = self._ready.pop()
                wanted = next(steps, None)
                if isinstance(wanted, str):
                    self._waiting.setdefault(wanted, []).append(steps)
                elif wanted is not None:
                    heapq.heappush(self._timers, (wanted, id(steps), steps))
            if self.total is not None:
                break
            if not self._timers and self._memory.quiet:
                self._stop()
                break
            self._memory.run(self._timers[0][0] if self._timers else NEVER, self._ready)
            while self._timers and self._timers[0][0] < self._memory.now:
                self._ready.append(heapq.heappop(self._timers)[2])
        return self._result()

    def _stop(self) -> None:
        """Nothing will happen any more."""
        for name in self.tokens:
            if name in self._waiting:
                self._hang(name)

    def _tell(self, name: str) -> None:
        """Something about `name` is known now."""
        self._ready += self._waiting.pop(name, ())

    def _post(self, name: str, cycle: int) -> None:
        super()._post(name, cycle)
        self._tell(name)

    def _pop(self, unit, cycle: int) -> None:
        super()._pop(unit, cycle)
        self._tell("popped")

    def _dispatch(self):
        handlers, depth = self._handlers(), self.config.queue_depth
        sent = dict.fromkeys(self.units, 0)
        previous = -1
        for word in self.words:
            name, act = handlers[word & 0xF]
            unit = self.units[name]
            while not self.arrived:
                yield "arrived"
            dispatch = max(self.arrived.popleft(), previous + 1)
            if sent[name] >= depth:
                while len(unit.popped) <= sent[name] - depth:
                    yield "popped"
                dispatch = max(dispatch, unit.popped[sent[name] - depth] + FIFO_PLACE_CYCLES)
            sent[name] += 1
            self.dispatched.append(dispatch)
            previous = dispatch
            self._inboxes[name].append((act, decode(word).fields, dispatch + FIFO_LATENCY))
            self._tell(name)
            self._tell("dispatched")

    def _hold(self):
        """The drain's next instruction: taken a cycle after the one before has begun, which may long not be over then.

        Whoever waits for a place in the drain's queue must hear of it at once.
        """
        inbox, number = self._inboxes["store"], 0
        while True:
            while not inbox:
                yield "store"
            while self._begun < number:
                yield "begun"
            act, fields, ready = inbox.popleft()
            self._inboxes["held"].append((act, fields, super()._held(self.units["store"], ready)))
            number += 1
            self._tell("held")

    def _held(self, unit, ready: int) -> int:
        return ready  # of what `_hold` has taken

    def _begin(self, cycle: int) -> int:
        self._begun += 1
        self._tell("begun")
        return super()._begin(cycle)

    def _work(self, name: str):
        unit = self.units[name]
        name = "held" if name == "store" else name
        inbox = self._inboxes[name]
        while True:
            while not inbox:
                yield name
            act, fields, ready = inbox.popleft()
            yield from act(unit, fields, ready)

    # -- reads --------------------------------------------------------------------------------------------
    def _ask(self, earliest: int, length: int) -> int:
        # The fetch has no more bursts in flight than the port has places for.
        self._memory.add(self._program, earliest + 1 + self.latency, length, _nothing, self._program_beat)
        return earliest

    def _program_beat(self, cycle: int) -> None:
        self._odd = not self._odd
        if not self._odd:
            self.arrived.append(self._arrival(cycle))
            self._tell("arrived")

    def _transfer(self, unit, fields: dict, accept: int, full: str):
        loads = unit is self.units["load"]
        name = "load" if loads else "weights"
        ports = self._readers[name]
        share = 1 if loads else len(ports)
        lengths, on_chip = list(self._read_bursts(fields, share)), fields["region"] == MAPS_REGION
        arrived = partial(self._arrived, full, self._written_after(loads)) if fields["post_full"] else _nothing
        earliest = accept + SPLIT_CYCLES
        for number, length in enumerate(lengths):
            last = Join(len(ports), arrived) if number == len(lengths) - 1 else None
            if loads:
                taken = yield from self._to_slices(ports, earliest, length, "load", last, on_chip)
            else:
                while not all(port.known for port in ports):
                    yield f"{name} over"
                look = LOOK_CYCLES if len(ports) > 1 else 0
                taken = max(earliest, *(port.place + look for port in ports))
                for port in ports:
                    self._read(port, taken, length // share, name, last)
            earliest = taken + SPLIT_CYCLES
        unit.free = taken + 1

    def _arrived(self, full: str, later: int, cycle: int) -> None:
        self._post(full, cycle + later)

    def _read(self, port: Port, taken: int, length: int, name: str, last, on_chip: bool = False) -> None:
        port.taken += 1
        due = taken + (MAP_READ_CYCLES if on_chip else 1 + self.latency)
        self._memory.add(port.channel, due, length, partial(self._read_over, port, name, last), on_chip=on_chip)

    def _read_over(self, port: Port, name: str, last, cycle: int) -> None:
        port.over.append(cycle)
        self._tell(f"{name} over")
        if last is not None:
            last(cycle)

    def _to_slices(self, ports: list, earliest: int, length: int, name: str, last, on_chip: bool, here: int = 0):
        """The cycle in which the splitter's burst is taken, for each slice through its port; see Spread.

        The splitter goes on in that cycle, long before all slices have the burst. The beats of a write are there in `here`.
        """
        if self.config.slices == 1:
            return (yield from self._offer(ports, earliest, length, name, last, on_chip, here))
        while name in self._spreading:
            yield f"{name} spread"
        taken = max(earliest, self._spread_free[name])
        self._spreading.add(name)
        self._ready.append(self._spread(name, self._offer(ports, taken + SPREAD_CYCLES, length, name, last, on_chip, here)))
        return taken

    def _spread(self, name: str, offer):
        latest = yield from offer
        self._spread_free[name] = latest + PORT_CYCLES
        self._spreading.remove(name)
        self._tell(f"{name} spread")

    def _offer(self, ports: list, offered: int, length: int, name: str, last, on_chip: bool, here: int):
        """The cycle in which the last port has taken a burst for the last of its slices."""
        groups = self.config.slices_per_port
        for group in range(groups):
            final, latest, left = group == groups - 1, 0, list(ports)
            while left:
                # None waits for another: memory goes on meanwhile.
                for port in [port for port in left if port.known]:
                    left.remove(port)
                    if name == "load":
                        own = max(offered, port.place)
                        self._read(port, own, length, name, last if final else None, on_chip)
                    else:
                        own = max(max(offered, here) + LOOK_CYCLES if not group else offered, port.place)
                        self._put(port, own, length, last if final else None, final, on_chip)
                    latest = max(latest, own)
                if left:
                    yield f"{name} over"
            offered = latest + PORT_CYCLES
        return latest

    # -- writes -------------------------------------------------------------------------------------------
    def _put(self, port: WritePort, taken: int, length: int, last, final: bool, on_chip: bool) -> None:
        port.taken += 1
        latency = MAP_ANSWER_CYCLES if on_chip else self.latency
        self._memory.add(port.channel, taken + FIFO_LATENCY, length, partial(self._put_over, port, last, latency),
                         port.popped.append if final else None, on_chip)

    def _put_over(self, port: WritePort, last, latency: int, cycle: int) -> None:
        answer = max(cycle + latency, port.over[-1] + 1 if port.over else 0)
        port.over.append(answer)
        self._tell("store over")
        if last is not None:
            last(answer)

    def _write(self):
        """The writer: takes orders, and bursts of them to the ports when their beats are there."""
        promised = free = 0
        while True:
            while not self._orders:
                yield "ordered"
            ordered, offset, beats, segments, stride, post, on_chip = self._orders.popleft()
            accept = max(ordered + FIFO_LATENCY, free)
            self._accepted.append(accept)
            self._tell("accepted")
            earliest = accept + SPLIT_CYCLES
            for segment in range(segments):
                lengths = list(burst_lengths(offset + segment * stride, beats, self.config.max_burst))
                for number, length in enumerate(lengths):
                    promised += length
                    while len(self._pushed) < promised:
                        yield "pushed"
                    ends = segment == segments - 1 and number == len(lengths) - 1
                    last = Join(len(self._writers), partial(self._written, post)) if ends else None
                    taken = yield from self._to_slices(self._writers, earliest, length, "store", last, on_chip,
                                                       self._pushed[promised - 1] + 1)
                    earliest = taken + SPLIT_CYCLES
            free = taken + 1

    def _written(self, post: bool, cycle: int) -> None:
        """All slices have their answers of a transfer."""
        self._open_orders -= 1
        self._last_answer = max(self._last_answer, cycle)
        if post:
            self._post("stores", cycle + 1)
        self._tell("answered")

    def _answered(self):
        while self._open_orders:
            yield "answered"
        return self._last_answer

    # -- drain --------------------------------------------------------------------------------------------
    def _order(self, earliest: int, *transfer):
        """The cycle in which there is a place for an order, from `earliest` on."""
        if self._ordered >= TRANSFERS:
            while len(self._accepted) <= self._ordered - TRANSFERS:
                yield "accepted"
            earliest = max(earliest, self._accepted[self._ordered - TRANSFERS] + FIFO_PLACE_CYCLES)
        self._ordered += 1
        self._open_orders += 1
        self._orders.append((earliest, *transfer))
        self._tell("ordered")
        return earliest

    def _plane(self, now: int, fields: dict, offset: int, beat_cycles: int, post: bool):
        beats, segments = fields["segment_beats"], fields["segments"]
        ordered = yield from self._order(now + SETUP_CYCLES - 1, offset, beats, segments, fields["segment_stride"], post,
                                         fields["region"] == MAPS_REGION)
        now = ordered + 1
        for segment in range(segments):
            now = yield from self._issue(now + (SETUP_CYCLES if segment else 0), beats, beat_cycles, self._drain_latency)
        return now

    def _issue(self, now: int, beats: int, beat_cycles: int, latency: int):
        """Issues groups from `now` on, while the writer has room; gives the cycle after the last one.

        A beat comes to the writer `latency` cycles after the last of its groups.
        """
        pushed, most = self._pushed, write_room(self.config)
        while beats:
            # So many come without a question, whatever leaves meanwhile.
            free = min(beats, most - len(pushed) + min(port.seen for port in self._writers))
            if free > 0:
                pushed += range(now + beat_cycles - 1 + latency, now + free * beat_cycles + latency, beat_cycles)
                now += free * beat_cycles
                beats -= free
            else:
                for _ in range(beat_cycles):
                    now = (yield from self._room(now)) + 1
                pushed.append(now - 1 + latency)
                beats -= 1
            self._tell("pushed")
        return now

    def _room(self, now: int):
        """The first cycle from `now` on in which the writer has room."""
        # The sign is a register: it counts what came until two cycles ago, and what left until three; of several ports
        # there is one more register.
        late = 2 + (len(self._writers) > 1)
        pushed, most = self._pushed, write_room(self.config)
        if all(len(pushed) - port.seen < most for port in self._writers):
            return now
        while True:
            if self._memory.now <= now - late - 1:
                yield now - late - 1
            while self._counted < len(pushed) and pushed[self._counted] <= now - late:
                self._counted += 1
            for port in self._writers:
                while port.seen < len(port.popped) and port.popped[port.seen] <= now - late - 1:
                    port.seen += 1
            if all(self._counted - port.seen < most for port in self._writers):
                return now
            now += 1

    def _stamp(self, unit, fields: dict, ready: int):
        begin = self._begin(max(self._held(unit, ready) + 1 + LOOK_CYCLES, unit.free))
        ordered = yield from self._order(begin + self._drain_latency + 1, fields["offset"], LOG_BEATS, 1, 0, False, False)
        self.stamps.append(ordered - COUNT_CYCLES)
        now = yield from self._issue(ordered + 1, LOG_BEATS, 1, 1)
        unit.free = (yield from self._room(now)) + 1


def _nothing(cycle: int) -> None:
    pass


def count_shared_cycles(program: Program, latency: int = 40, bytes_per_cycle: Fraction | float = DDR_BYTES) -> Cycles:
    """Cycles of one run of `program` on memory whose ports together move `bytes_per_cycle` at most."""
    return SharedCycleModel(program.config, program.words, latency, bytes_per_cycle).run()
