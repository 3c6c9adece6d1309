"""Memory whose ports share a budget, as a DDR controller's do, cycle by cycle; docs/simulation.md#memory states the rule.

Ports take bursts as those of the gateware do (engine/axi.py).
"""

from collections import deque
from collections.abc import Callable
from fractions import Fraction

from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import FIFO_PLACE_CYCLES, OUTSTANDING_WRITES, activation_masters, weight_masters
from esbflow.errors import BadValue

DDR_BYTES = 45.5
"""What the DDR of a ZCU102 gives a cycle of 300 MHz, reads and writes together."""
MOST_PARTS = 1000
"""A budget is a fraction with a denominator of at most this."""
BEAT_BYTES = 16
NEVER = 1 << 62


class SharedMemory:
    """What channels move, one cycle after the other. A channel is a port's R or its W.

    In a cycle each channel that has a beat gets one, the channel behind the one served last first, for as long as there is
    budget for a beat. The budget grows by so much each cycle; no more than part of a beat is left over.

    Bursts on chip are in order with those of their channel, and take no budget. Memory offers a read's first beat, and is
    charged for it, while one on chip is still before it; a write's first beat comes after that.

    >>> memory, beats = SharedMemory(2, 24), []
    >>> for channel in range(2):
    ...     memory.add(channel, channel, 4, print, lambda cycle, channel=channel: beats.append((cycle, channel)))
    >>> memory.run(9, [])
    4
    5
    >>> beats
    [(0, 0), (1, 1), (1, 0), (2, 1), (3, 0), (3, 1), (4, 0), (5, 1)]

    Raises
    ------
    BadValue
        if nothing moves.
    """

    def __init__(self, channels: int, bytes_per_cycle: Fraction | float, writes: tuple = ()):
        budget = Fraction(bytes_per_cycle).limit_denominator(MOST_PARTS)
        if budget <= 0:
            raise BadValue(f"memory must move at least 1/{MOST_PARTS} bytes a cycle, not {bytes_per_cycle}")
        self.now = 0  # cycle that comes next
        self._gain, self._cost = budget.numerator, BEAT_BYTES * budget.denominator
        self._credit = self._most = self._cost + self._gain - 1
        self._turn = 0
        self._orders = [tuple((turn + k) % channels for k in range(channels)) for turn in range(channels)]
        self._due = [NEVER] * channels  # cycle from which a channel's next beat can move
        self._left = [0] * channels  # beats of its burst
        self._bursts: list[deque] = [deque() for _ in range(channels)]
        self._writes = set(writes)
        self._last = [-1] * channels  # cycle of a channel's latest beat, as far as that is known
        self._notes: list[Callable | None] = [None] * channels

    def add(self, channel: int, due: int, beats: int, done, note=None, on_chip: bool = False) -> None:
        """A burst behind those that the channel has: beats can move from cycle `due` on.

        `done` is called with the cycle of its last beat, `note` with that of each beat. Cycles that are over cannot take it.
        """
        assert due >= self.now, f"a burst for cycle {due} is known in cycle {self.now} only"
        self._bursts[channel].append((due, beats, done, note, on_chip))
        if self._due[channel] == NEVER:
            self._next(channel, 0)

    def _next(self, channel: int, earliest: int) -> None:
        """The channel's next burst of memory, from cycle `earliest` on; what is on chip before it is over at known times."""
        bursts = self._bursts[channel]
        while bursts and bursts[0][4]:
            due, beats, done, note, _ = bursts.popleft()
            first = max(due, self._last[channel] + 1)
            self._last[channel] = first + beats - 1
            if note is not None:
                for cycle in range(first, first + beats):
                    note(cycle)
            done(self._last[channel])
        if not bursts:
            self._due[channel] = NEVER
            return
        due, self._left[channel], _, note, _ = bursts[0]
        self._notes[channel] = note
        self._due[channel] = max(due, earliest, self._last[channel] + 1 if channel in self._writes else 0)

    @property
    def quiet(self) -> bool:
        """Whether no channel has a beat to move, now or later."""
        return min(self._due) == NEVER

    def run(self, until: int, called: list) -> None:
        """Goes on until the cycle `until` is done, or one in which `done` or `note` has put something into `called`."""
        due, left, notes, last = self._due, self._left, self._notes, self._last
        gain, cost, most = self._gain, self._cost, self._most
        now, credit, turn = self.now, self._credit, self._turn
        while now <= until and not called:
            credit = credit + gain if credit + gain < most else most
            asked = False
            for channel in self._orders[turn]:
                if due[channel] > now:
                    continue
                asked = True
                if credit < cost:
                    break
                credit -= cost
                turn = channel + 1
                taken = now
                if last[channel] >= now:  # it waits for what is on chip before it
                    taken = last[channel] + 1
                    due[channel] = taken + 1
                last[channel] = taken
                note = notes[channel]
                if note is not None:
                    note(taken)
                left[channel] -= 1
                if not left[channel]:
                    self._bursts[channel].popleft()[2](taken)
                    self._next(channel, taken + 1)
            now += 1
            if not asked:
                turn = 0
                then = min(min(due), until + 1)
                credit = min(most, credit + (then - now) * gain)
                now = then
            elif turn == len(due):
                turn = 0
        self.now, self._credit, self._turn = now, credit, turn


class Join:
    """Calls `then` with the latest of `count` cycles, once they are all known."""

    def __init__(self, count: int, then):
        self._count, self._then, self._latest = count, then, -1

    def __call__(self, cycle: int) -> None:
        self._count -= 1
        self._latest = max(self._latest, cycle)
        if not self._count:
            self._then(self._latest)


class Port:
    """A ReadPort or WritePort: `over` are the cycles in which its bursts were over, in order.

    It has a place for a burst FIFO_PLACE_CYCLES after the one `places` before is over.
    """

    def __init__(self, channel: int, places: int):
        self.channel, self.places = channel, places
        self.taken = 0
        self.over: list[int] = []

    @property
    def known(self) -> bool:
        """Whether it is known when there is a place for one more burst."""
        return len(self.over) > self.taken - self.places

    @property
    def place(self) -> int:
        """The cycle from which there is a place for one more burst; 0 where there has always been one."""
        return self.over[self.taken - self.places] + FIFO_PLACE_CYCLES if self.taken >= self.places else 0


class WritePort(Port):
    """A port that writes: as many bursts under way as the engine's write port has."""

    def __init__(self, channel: int):
        super().__init__(channel, OUTSTANDING_WRITES)
        self.popped: list[int] = []  # cycles in which a beat of its last source left
        self.seen = 0  # of those, as many as the drain knows of


def channels(config: EngineConfig) -> list:
    """Channels in the order of the arbiter."""
    first = ["program", "weights", "activations"]
    names = [name.removeprefix("m_axi_") for name in (*weight_masters(config), *activation_masters(config))]
    others = sorted(set(names) - set(first))
    return [channel for name in (*first, *others)
            for channel in ((name, f"{name} write") if name.startswith("activations") else (name,))]
