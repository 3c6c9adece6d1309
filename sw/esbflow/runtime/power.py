"""Power of a board's rails during runs, by PYNQ's sensors: watts, joules, and frames per joule.

    from esbflow.runtime import power
    energy = power.measure(engine, images, ["VCCINT"])
    energy.frames_per_joule["VCCINT"], energy.watts["VCCINT"], energy.idle_watts["VCCINT"]

A rail may feed others, so rails are not added up. Sensors on boards (INA226) average over milliseconds and are read over
I2C, so one short run says little: `measure` repeats it. Nobody has run this on a board.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esbflow.errors import BadValue
from esbflow.runtime.errors import SensorsMissing
from esbflow.suggest import no_such

INTERVAL_SECONDS = 0.02
"""From one reading of all rails to the next; reading takes time too."""


def board_rails(names=None, rails: dict | None = None) -> dict:
    """{name: rail} of the board's rails whose power is known, by a sensor or from voltage and current.

    Parameters
    ----------
    names : those that are wanted; None: all.
    rails : {name: object with `power`, `voltage` and `current`, each a sensor with a `value` in W, V, A, or None}; None:
        what `pynq.get_rails` finds.

    Raises
    ------
    SensorsMissing
        if there is none.
    ValueError
        for a name that none of them has, listing those that there are.
    """
    if rails is None:
        import pynq

        rails = pynq.get_rails()
    known = {name: rail for name, rail in rails.items() if rail.power or (rail.voltage and rail.current)}
    if not known:
        raise SensorsMissing("PYNQ finds no rail with a power sensor on this board; is libsensors installed, and does its "
                             "sensors.conf name the board's rails?")
    if isinstance(names, str):
        names = [names]
    for name in names or ():
        if name not in known:
            raise BadValue(no_such("rail", name, known))
    return {name: known[name] for name in (known if names is None else names)}


def _watts(rail) -> float:
    return float(rail.power.value if rail.power else rail.voltage.value * rail.current.value)


class PowerRecorder:
    """Samples rails in a thread of its own, from entering its `with` block until leaving it.

    Attributes, once the block is left
    ----------------------------------
    seconds : float64 (samples,), of the samples, from the first one on
    samples : {rail: float64 (samples,)}, in watts; the first and the last are taken at the block's ends
    joules, watts : {rail: energy of the block by the trapezoid rule, and that over its time}

    Raises
    ------
    SensorsMissing, ValueError
        as `board_rails` does. What reading a sensor raises is raised at the end of the block.
    """

    def __init__(self, names=None, interval: float = INTERVAL_SECONDS, rails: dict | None = None):
        if interval <= 0:
            raise BadValue(f"the interval must be above 0 s, not {interval}")
        self._rails, self._interval = board_rails(names, rails), interval
        self._rows: list = []
        self._done = threading.Event()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "PowerRecorder":
        self._rows, self._error = [], None
        self._done.clear()
        self._sample()
        self._thread = threading.Thread(target=self._sample_all, name="esbflow power", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if kind is not None:
            return
        if self._error is not None:
            raise self._error
        self._sample()
        rows = np.array(self._rows)
        self.seconds = rows[:, 0] - rows[0, 0]
        self.samples = dict(zip(self._rails, rows[:, 1:].T))
        steps = np.diff(self.seconds)
        self.joules = {name: float((steps * (watts[1:] + watts[:-1]) / 2).sum()) for name, watts in self.samples.items()}
        self.watts = {name: joules / float(self.seconds[-1]) for name, joules in self.joules.items()}

    def _sample(self) -> None:
        begun = time.monotonic()
        values = [_watts(rail) for rail in self._rails.values()]
        self._rows.append([(begun + time.monotonic()) / 2, *values])

    def _sample_all(self) -> None:
        try:
            while not self._done.wait(self._interval):
                self._sample()
        except Exception as error:
            self._error = error


@dataclass(frozen=True)
class Energy:
    """What `measure` found. Of the host's part and the engine's together, as a user meets them.

    frames, seconds : of all runs; watts, joules : {rail: of all runs}; idle_watts : {rail: just before}
    """

    frames: int
    seconds: float
    watts: dict
    joules: dict
    idle_watts: dict = field(default_factory=dict)

    @property
    def frames_per_joule(self) -> dict:
        """{rail: frames for a joule, idle power included}; infinite where no energy was measured."""
        return {name: self.frames / joules if joules else float("inf") for name, joules in self.joules.items()}


def measure(engine: Any, images, names=None, seconds: float = 10.0, idle_seconds: float = 2.0,
            interval: float = INTERVAL_SECONDS, rails: dict | None = None) -> Energy:
    """Run the images again and again for `seconds` at least, and measure the rails meanwhile and before.

    `engine` : a driver with a program. Packing of the images and unpacking of the outputs is in the time: the host's part.
    Raises as PowerRecorder and the driver's `run` do.
    """
    if seconds <= 0 or idle_seconds < 0:
        raise BadValue(f"seconds must be above 0 and idle_seconds not negative, not {seconds} and {idle_seconds}")
    recorder, idle = PowerRecorder(names, interval, rails), {}
    engine.run(images)  # a mistake is one before anything is measured
    if idle_seconds:
        with recorder:
            time.sleep(idle_seconds)
        idle = recorder.watts
    frames, until = 0, time.monotonic() + seconds
    with recorder:
        while frames == 0 or time.monotonic() < until:
            engine.run(images)
            frames += len(images)
    return Energy(frames, float(recorder.seconds[-1]), recorder.watts, recorder.joules, idle)
