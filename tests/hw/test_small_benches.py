"""Blocks of a few lines: tokens, watchdog, counters, queue, map memory."""

from esbhw.engine.counters import Counters
from esbhw.engine.faults import Watchdog
from esbhw.engine.map_memory import MapMemory
from esbhw.engine.queue import InstructionQueue
from esbhw.engine.tokens import Tokens
from sim.benches import build


def test_tokens_count_and_flag_what_cannot_be():
    build.run("tokens_bench", build.build("tokens", Tokens()))


def test_the_watchdog_barks_when_nothing_moves():
    build.run("watchdog_bench", build.build("watchdog", Watchdog(2)))


def test_counters_count_events_while_running():
    build.run("counters_bench", build.build("counters", Counters()))


def test_the_instruction_queue_is_a_queue():
    build.run("queue_bench", build.build("queue", InstructionQueue("PASS", 4)), depth=4)


def test_the_map_memory_gives_every_beat_in_order_and_in_its_time():
    build.run("map_memory_bench", build.build("map_memory", MapMemory(64)), beats=64)
