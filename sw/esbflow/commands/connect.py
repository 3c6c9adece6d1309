"""A driver for the engine that the command line asks for: a board's, the simulated board's, or one behind a serial line."""

from esbflow.runtime.engine import Engine
from esbflow.runtime.recording import Recorder


def connect(config, overlay: str | None = None, port: str | None = None, record: str | None = None, waves=None):
    """An object with load and run.

    Parameters
    ----------
    overlay : a .bit to load through PYNQ; None is the simulated ZCU102.
    port : a serial port, or "simulated" for the ULX3S design pin to pin; then there is no overlay.
    record : a file into which every access is written.
    waves : esbsim.waves.Waves of what the simulated ZCU102 does, or None.
    """
    if port is not None:
        transport = serial_transport(config, port)
        return Engine(Recorder(transport, record) if record else transport)
    if overlay is None:
        from esbhw.cache import cache_folder
        from esbsim.board import board, write_overlay  # importing it makes the simulated board PYNQ's device

        board().trace = waves
        overlay = write_overlay(config, cache_folder() / "overlay" / f"{config.hash:016x}")
    from esbflow.runtime import pynq_driver

    driver = pynq_driver.open_engine(overlay)
    return Engine(Recorder(driver.engine.transport, record)) if record else driver


def serial_transport(config, port: str):
    """The transport of an engine behind a serial port, or of the ULX3S design pin to pin if the port is "simulated"."""
    from esbflow.runtime.serial_transport import SerialPort, SerialTransport

    return SerialTransport(_simulated_pins(config) if port == "simulated" else SerialPort(port))


def _simulated_pins(config):
    from esbhw.boards import board
    from esbhw.open_flow import top_name, top_rtlil
    from esbsim.serial_board import SerialBoard

    ulx3s = board("ulx3s")
    return SerialBoard(top_rtlil(config, ulx3s), top_name(config, ulx3s), ulx3s.clock_mhz * 1_000_000, ulx3s.baud)
