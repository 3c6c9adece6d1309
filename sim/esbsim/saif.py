"""Switching activity of a simulated run, for a power estimate: a backward SAIF 2.0 file from the run's VCD.

    simulate_engine(config, memory, trace="run.vcd") ... simulator.trace(None)
    saif.convert("run.vcd", "activity.saif")

Each bit of each signal has its time at 0 and at 1 and its number of toggles. Vivado's `read_saif` takes them for nets that
still have these names after synthesis, registers and ports above all. It has not been tried on Vivado.
"""

import re
from pathlib import Path
from typing import NamedTuple

from esbflow.errors import BadValue
from esbflow.files import whole

_CHANGE = re.compile(r"([01xXzZ])(\S+)$|b([01xXzZ]+) (\S+)$")


class Activity:
    """One signal's bits, low bit first: level, since when, time at 0, at 1 and unknown, toggles."""

    __slots__ = ("at", "bits", "level", "since", "toggles")

    def __init__(self, width: int):
        self.bits = width
        self.level = ["x"] * width
        self.since = [0] * width
        self.at = [[0, 0, 0] for _ in range(width)]
        self.toggles = [0] * width

    def set(self, values: str, now: int) -> None:
        """The signal is `values` (high bit first, as VCD writes it) from `now` on."""
        fill = "0" if values[0] in "01" else values[0]
        values = values.rjust(self.bits, fill)[::-1].lower()
        for bit in range(self.bits):
            if values[bit] != self.level[bit]:
                self._spend(bit, now)
                if self.level[bit] in "01" and values[bit] in "01":
                    self.toggles[bit] += 1
                self.level[bit] = values[bit]

    def _spend(self, bit: int, now: int) -> None:
        self.at[bit]["01".find(self.level[bit]) if self.level[bit] in "01" else 2] += now - self.since[bit]
        self.since[bit] = now

    def end(self, now: int) -> None:
        """Count the time until `now` for the values that signals have."""
        for bit in range(self.bits):
            self._spend(bit, now)


class Recording(NamedTuple):
    """Activity of each signal by its name, the length of the run in units, and the unit as VCD writes it: "1ps"."""

    signals: dict[str, Activity]
    duration: int
    unit: str


def read_vcd(path: str | Path) -> Recording:
    """({name: Activity}, length of the run in units, unit as VCD writes it: "1ps").

    Raises
    ------
    ValueError
        if the file is no VCD, or ends before its first change.
    """
    signals, by_code, scopes, unit, now = {}, {}, [], "1ns", None
    with open(path) as file:
        for line in file:
            line = line.strip()
            if now is None and line.startswith("$"):
                words = line.split()
                if words[0] == "$scope":
                    scopes.append(words[2])
                elif words[0] == "$upscope":
                    scopes.pop()
                elif words[0] == "$timescale":
                    unit = "".join(words[1:-1] if words[-1] == "$end" else words[1:]) or next(file).strip()
                elif words[0] == "$var":
                    name = ".".join([*scopes, re.sub(r"\[\d+:\d+\]$", "", words[4])])
                    signal = by_code.setdefault(words[3], Activity(int(words[2])))
                    signals[name] = signal
            elif line.startswith("#"):
                now = int(line[1:])
            elif now is not None and (change := _CHANGE.match(line)):
                signal = by_code.get(change[2] or change[4])
                if signal is not None:
                    signal.set(change[1] or change[3], now)
    if now is None or not signals:
        raise BadValue(f"{path} is not a VCD of a run: it has no signals or no time")
    for signal in by_code.values():
        signal.end(now)
    return Recording(signals, now, unit)


def convert(vcd: str | Path, out: str | Path, instance: str = "inst") -> dict:
    """Write the SAIF of a VCD. `instance` : what the engine's top is called in the design that reads it.

    Returns
    -------
    dict
        nets (bits), toggles and duration in the VCD's units.

    Raises
    ------
    ValueError
        as read_vcd does.
    """
    signals, duration, unit = read_vcd(vcd)
    tree = {}
    for name, signal in signals.items():
        *path, leaf = name.split(".")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        node[leaf, "net"] = signal
    number, scale = re.fullmatch(r"(\d+) *(\w+)", unit).groups()
    with whole(out) as temporary, open(temporary, "w") as file:
        file.write('(SAIFILE\n(SAIFVERSION "2.0")\n(DIRECTION "backward")\n(DESIGN )\n(VENDOR "esbflow")\n'
                   f'(PROGRAM_NAME "esbsim")\n(DIVIDER / )\n(TIMESCALE {number} {scale})\n(DURATION {duration})\n')
        _instance(file, instance, _below_single(tree))
        file.write(")\n")
    bits = {id(signal): signal for signal in signals.values()}.values()
    return {"nets": sum(signal.bits for signal in bits), "toggles": sum(map(sum, (s.toggles for s in bits))),
            "duration": duration}


def _below_single(tree: dict) -> dict:
    """Below the scopes that only wrap the design."""
    while len(tree) == 1 and isinstance(next(iter(tree)), str):
        tree = next(iter(tree.values()))
    return tree


def _instance(file, name: str, node: dict) -> None:
    file.write(f"(INSTANCE {_name(name)}\n")
    nets = [(key[0], signal) for key, signal in node.items() if isinstance(key, tuple)]
    if nets:
        file.write("(NET\n")
        for net, signal in nets:
            for bit in range(signal.bits):
                label = _name(net) if signal.bits == 1 else f"{_name(net)}\\[{bit}\\]"
                zero, one, unknown = signal.at[bit]
                file.write(f"({label} (T0 {zero}) (T1 {one}) (TX {unknown}) (TC {signal.toggles[bit]}) (IG 0))\n")
        file.write(")\n")
    for key, child in node.items():
        if isinstance(key, str):
            _instance(file, key, child)
    file.write(")\n")


def _name(text: str) -> str:
    return re.sub(r"([^A-Za-z0-9_])", r"\\\1", text)
