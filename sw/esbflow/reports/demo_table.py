"""The demo's table, as it is printed and as it stands in the README.

    python -m esbflow.reports.demo_table build/demo/report.json README.md
"""

import json
import sys
from pathlib import Path

from esbflow.reports.marks import fill as fill_marked

HEADER = ("", "value", "how it is known")
MARK = "demo table"


def rows(content: dict) -> list:
    """(figure, value, how it is known) for each row, from a demo's report."""
    training = content["training"]
    return [
        (f"top-1 %, real numbers, {content['images']} images", _percent(content["float_top1"]), "PyTorch"),
        ("top-1 %, fake quantization", _percent(content["fake_quant_top1"]), "PyTorch"),
        ("top-1 %, integer graph", f"{content['graph_top1']:.2f}", "NumPy"),
        ("top-1 %, engine", f"{content['top1']:.2f}", "compiled RTL, cycle-accurate"),
        ("output values that differ, RTL from graph", f"{content['mismatches']} of {content['values']:,}", "compared"),
        (f"top-1 % on {training['images']:,} images: real, fake, integer",
         f"{training['float_top1']:.2f} {training['fake_quant_top1']:.2f} {training['graph_top1']:.2f}",
         "PyTorch, NumPy"),
        ("cycles an image", f"{content['cycles_per_image']:,.0f}", f"RTL, batch {content['batch']}"),
        ("use of the multiply-accumulate lanes %", f"{100 * content['utilization']:.1f}", "RTL"),
        ("LUT / FF / BRAM36 / DSP", f"{content['lut']:,} / {content['ff']:,} / {content['bram']:g} / {content['dsp']}",
         "Yosys, not routed"),
        (f"frames/s at {content['clock_mhz']} MHz", f"{content['frames_per_second']:,.0f}", "cycles, stated clock"),
        ("GOPS useful / peak", f"{content['gops']:.1f} / {content['gops_peak']:.1f}", "cycles, stated clock"),
        ("GOPS/kLUT useful / peak", f"{content['gops_per_klut']:.2f} / {content['gops_peak_per_klut']:.2f}",
         "with Yosys' LUTs"),
        ("clock cycles simulated a second", f"{content['sim_cycles_per_second']:,.0f}", "this machine"),
        ("minutes in all", f"{content['demo_seconds'] / 60:.1f}", "this machine"),
    ]


def _percent(value: float | None) -> str:
    return "not at hand" if value is None else f"{value:.2f}"


def markdown(content: dict) -> str:
    """The table for the README."""
    lines = [f"| {content['model']} on {content['engine']} | {HEADER[1]} | {HEADER[2]} |", "|---|---:|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows(content)])


def fill(readme: str, content: dict) -> str:
    """The README's text with the table between its marks replaced.

    Raises
    ------
    ValueError
        if the marks are not there.
    """
    return fill_marked(readme, MARK, markdown(content), "the README")


if __name__ == "__main__":
    report, target = (Path(path) for path in sys.argv[1:3])
    target.write_text(fill(target.read_text(), json.loads(report.read_text())))
