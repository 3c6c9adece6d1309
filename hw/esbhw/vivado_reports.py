"""Figures out of Vivado's text reports."""

import re

from esbhw.flow_error import FlowError

_ROWS = {
    "lut": r"(?:CLB|Slice) LUTs\*?", "lutram": "LUT as Memory", "ff": r"(?:CLB|Slice) Registers",
    "latches": "Register as Latch", "bram36": "Block RAM Tile", "uram": "URAM", "dsp": "DSPs",
}
_OPTIONAL = ("uram",)  # 7-series parts have none, and no row for it


def timing(text: str) -> dict:
    """wns_ns, tns_ns, whs_ns, wpws_ns and failing endpoints of report_timing_summary. NA, of a class without paths, is 0.

    Raises
    ------
    FlowError
        if the summary is not there, or no path was analysed: then nothing is constrained.
    """
    found = re.search(r"^\| Design Timing Summary\n.*?^ *WNS\(ns\)[^\n]*\n[ -]*\n([^\n]+)\n", text, re.MULTILINE | re.DOTALL)
    values = found[1].split() if found else []
    if len(values) != 12:
        raise FlowError("the timing report has no Design Timing Summary")
    if values[0] == "NA" or int(values[3]) == 0:
        raise FlowError("the timing report has no constrained path: the clock is missing")
    names = ("wns_ns", "tns_ns", "failing", "endpoints", "whs_ns", "ths_ns", "hold_failing", "hold_endpoints", "wpws_ns")
    number = {name: 0.0 if value == "NA" else float(value) for name, value in zip(names, values)}
    return {"wns_ns": number["wns_ns"], "tns_ns": number["tns_ns"], "whs_ns": number["whs_ns"], "wpws_ns": number["wpws_ns"],
            "failing_endpoints": int(number["failing"] + number["hold_failing"]), "endpoints": int(number["endpoints"])}


def utilization(text: str) -> dict:
    """lut, lutram, ff, latches, bram36, uram, dsp of report_utilization.

    Raises
    ------
    FlowError
        if a row is missing.
    """
    found = {}
    for name, label in _ROWS.items():
        row = re.search(rf"^\| +{label} +\| +([\d.]+) ", text, re.MULTILINE)
        if row is None and name not in _OPTIONAL:
            raise FlowError(f"the utilization report has no row for {name}")
        value = float(row[1]) if row else 0.0
        found[name] = value if name == "bram36" else int(value)
    return found


def power(text: str) -> dict:
    """total_w, dynamic_w, static_w and confidence of report_power."""
    found = {}
    for name, label in (("total_w", r"Total On-Chip Power \(W\)"), ("dynamic_w", r"Dynamic \(W\)"),
                        ("static_w", r"Device Static \(W\)")):
        row = re.search(rf"^\| {label} +\| ([\d.]+)", text, re.MULTILINE)
        if row is None:
            raise FlowError(f"the power report has no row for {name}")
        found[name] = float(row[1])
    level = re.search(r"^\| Confidence Level +\| (\w+)", text, re.MULTILINE)
    return found | {"confidence": level[1] if level else "unknown"}
