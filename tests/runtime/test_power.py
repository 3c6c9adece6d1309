"""Power around runs, with rails that are not real: PYNQ's own classes over files, and sensors that fail."""

import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from esbflow.errors import BadValue
from esbflow.runtime import power
from esbflow.runtime.errors import InputError, SensorsMissing


class Sensor:
    """Gives what `read` gives."""

    def __init__(self, read):
        self._read = read

    @property
    def value(self):
        return self._read()


def rail(power=None, voltage=None, current=None):
    return SimpleNamespace(**{name: value if value is None else Sensor(value) for name, value in
                              (("power", power), ("voltage", voltage), ("current", current))})


def rails(**more):
    return {"VCCINT": rail(lambda: 2.5), "VCC1V8": rail(voltage=lambda: 1.8, current=lambda: 0.5), "12V": rail(voltage=lambda: 12.0),
            **more}


@pytest.fixture
def engine(engine):
    return engine[0]


def images(n):
    return np.zeros((n, 3, 5, 7), np.uint8)


def test_energy_of_a_block_is_power_times_time():
    with power.PowerRecorder(rails=rails(), interval=0.005) as recorder:
        time.sleep(0.1)
    seconds = recorder.seconds[-1]
    assert list(recorder.samples) == ["VCCINT", "VCC1V8"] and seconds >= 0.1 and len(recorder.seconds) >= 5
    assert recorder.joules == pytest.approx({"VCCINT": 2.5 * seconds, "VCC1V8": 0.9 * seconds})
    assert recorder.watts == pytest.approx({"VCCINT": 2.5, "VCC1V8": 0.9})


def test_energy_of_rising_power_is_that_of_its_middle(monkeypatch):
    seconds = [0.0]

    def monotonic():
        seconds[0] += 0.01
        return seconds[0]

    monkeypatch.setattr(power, "time", SimpleNamespace(monotonic=monotonic))
    with power.PowerRecorder("VCCINT", 0.005, rails(VCCINT=rail(lambda: 10 * seconds[0]))) as recorder:
        time.sleep(0.1)
    first, last = recorder.samples["VCCINT"][[0, -1]]
    assert last > first and recorder.watts["VCCINT"] == pytest.approx((first + last) / 2)  # the rule is exact on a line


def test_a_block_that_is_over_at_once_has_a_sample_at_each_end():
    with power.PowerRecorder(rails=rails(), interval=100) as recorder:
        pass
    assert len(recorder.seconds) == 2 and recorder.watts["VCCINT"] == pytest.approx(2.5)
    with recorder:  # again
        pass
    assert len(recorder.seconds) == 2


def test_measuring_repeats_the_run_and_knows_the_idle_power(engine):
    running = threading.Event()
    run = engine.run

    def marked(x):
        running.set()
        try:
            return run(x)
        finally:
            running.clear()
    engine.run = marked
    found = power.measure(engine, images(5), ["BOARD"], 0.2, 0.05, 0.002, rails(BOARD=rail(lambda: 9.0 if running.is_set() else 4.0)))
    assert found.frames % 5 == 0 and found.frames >= 10 and found.seconds >= 0.2
    assert found.idle_watts == {"BOARD": 4.0} and 4.0 < found.watts["BOARD"] <= 9.0
    assert found.frames_per_joule["BOARD"] == pytest.approx(found.frames / (found.watts["BOARD"] * found.seconds))


@pytest.mark.parametrize("given", [{}, {"12V": rail(voltage=lambda: 12.0)}])
def test_a_board_without_power_sensors_is_named(given):
    with pytest.raises(SensorsMissing, match="PYNQ finds no rail with a power sensor on this board"):
        power.PowerRecorder(rails=given)


def test_bad_input_is_refused_before_anything_runs(engine):
    with pytest.raises(BadValue, match="no rail named 'VCCIN'; known: VCCINT, VCC1V8; did you mean VCCINT"):
        power.measure(engine, images(1), ["VCCIN"], rails=rails())
    with pytest.raises(BadValue, match="the interval must be above 0 s, not 0"):
        power.PowerRecorder(interval=0, rails=rails())
    with pytest.raises(BadValue, match="seconds must be above 0"):
        power.measure(engine, images(1), seconds=0, rails=rails())
    begun = time.monotonic()
    with pytest.raises(InputError, match="there are no images"):
        power.measure(engine, images(0), rails=rails())
    assert time.monotonic() - begun < 1.5, "the wrong images were found before the idle power"


def test_a_sensor_that_fails_is_an_error_of_the_block_and_not_of_the_run(engine):
    values = iter([1.0, 2.0])

    def read():
        try:
            return next(values)
        except StopIteration:
            raise OSError("no answer on the bus") from None

    with pytest.raises(OSError, match="no answer on the bus"), power.PowerRecorder(interval=0.001, rails={"A": rail(read)}):
        time.sleep(0.05)
        result = engine.run(images(2))
    assert len(result.outputs) == 2
    with pytest.raises(ZeroDivisionError), power.PowerRecorder(interval=0.001, rails=rails()) as recorder:
        raise ZeroDivisionError
    assert not recorder._thread.is_alive()


def test_pynqs_own_rails_and_sensors(tmp_path, monkeypatch):
    pynq = pytest.importorskip("pynq")
    from pynq.pmbus import DerivedPowerSensor, Rail, SysFSSensor

    for name, value in (("in1_input", "850\n"), ("curr1_input", "2000\n"), ("power1_input", "1500000\n")):
        (tmp_path / name).write_text(value)
    core, board = Rail("VCCINT"), Rail("BOARD")
    core.voltage = SysFSSensor(str(tmp_path / "in1_input"), "V", "VCCINT_vol", 0.001)
    core.current = SysFSSensor(str(tmp_path / "curr1_input"), "A", "VCCINT_curr", 0.001)
    core.power = DerivedPowerSensor("VCCINT_power", core.voltage, core.current)
    board.power = SysFSSensor(str(tmp_path / "power1_input"), "W", "BOARD_power", 1e-6)
    monkeypatch.setattr(pynq, "get_rails", lambda: {"VCCINT": core, "BOARD": board})
    with power.PowerRecorder(interval=0.005) as recorder:
        time.sleep(0.02)
    assert recorder.watts == pytest.approx({"VCCINT": 1.7, "BOARD": 1.5})


def test_the_page_s_snippet_runs(engine, monkeypatch):
    pynq = pytest.importorskip("pynq")
    monkeypatch.setattr(pynq, "get_rails", rails)
    page = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text()
    snippet = re.search(r"```python\n(from esbflow.runtime import power\n.*?)```", page, re.DOTALL)[1].replace("seconds=10", "seconds=0.05")
    given = {"driver": engine, "images": images(3)}
    exec(compile(snippet, "hardware.md", "exec"), given)
    assert given["energy"].watts == pytest.approx({"VCCINT": 2.5}) and set(given["recorder"].joules) == {"VCCINT", "VCC1V8"}
