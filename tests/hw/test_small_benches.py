"""Blocks of a few lines: tokens, watchdog, counters, queue."""

from esbhw.engine.counters import Counters
from esbhw.engine.faults import Watchdog
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
