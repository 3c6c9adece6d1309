"""The tables of large engines in docs/networks.md: which share of the lanes is at work, where the other cycles go, what was
asked for, and rates (rates_table.py).

    python -m esbflow.reports.lanes_table docs      # about 6 minutes of one core

Cycles are the exact cycle model's; all but rates on DDR for ideal memory.
"""

import json
import sys
from pathlib import Path

from esbflow.engine_config import EngineConfig
from esbflow.files import write_whole
from esbflow.reports import rates_table
from esbflow.reports.large_engines import config_of, plan_of
from esbflow.reports.lost import largest
from esbflow.reports.marks import fill

MARK = "table of large engines"
HEAD = ("| network | engine | lanes | batch | cycles an image | use % | lost to, % of the cycles |\n"
        "|---|---|--:|--:|--:|--:|---|")
ROWS = (("resnet18", "table64x64-w4", 1), ("resnet18", "table64x128-w4", 4),
        ("resnet18", "table128x64-w4", 4), ("resnet18", "table128x128-w4", 4),
        ("resnet18", "table64x64-w4-slices2", 8), ("resnet18", "table64x64-w4-slices4", 4),
        ("resnet18", "table64x64-w4-slices4", 8), ("resnet18", "table64x64-w4-stripes4", 1),
        ("resnet18", "zcu102-w4a4", 1), ("resnet18", "zcu102-w4a4", 4), ("resnet18", "zcu102-w4a4", 8),
        ("mobilenet-v2", "table64x64-w4", 1), ("mobilenet-v2", "table64x64-w4", 4), ("mobilenet-v2", "table32x128-w4", 1),
        ("mobilenet-v2", "table32x32-w4-slices4", 4), ("mobilenet-v2", "table32x32-w4-stripes4", 1),
        ("mobilenet-v2", "zcu102-w4a4", 1), ("mobilenet-v2", "zcu102-w4a4", 4),
        ("resnet20", "table64x64-w4", 1), ("resnet20", "table32x32-w4-slices4", 4),
        ("resnet20", "table32x32-w4-stripes4", 1),
        ("resnet20", "table16x16-w4-slices16", 16), ("resnet20", "table16x16-w4-slices16", 32),
        ("vgg16-convolutions", "table64x64-w4", 1), ("yolov3-tiny", "table64x64-w4", 1))


def row(network: str, name: str, batch: int) -> str:
    """One line of the table."""
    config, plan = config_of(name), plan_of(network, name, batch)
    return (f"| {network} | `{name}` | {config.macs_per_cycle:,} | {batch} | {plan['cycles_per_image']:,.0f} | "
            f"{100 * plan['utilization']:.1f} | {largest(plan['lost'], plan['cycles_per_image'])} |")


ASKED_MARK = "table of what was asked"
ASKED_HEAD = "| network | lanes | batch | asked, % | reached, % | by | known by |\n|---|--:|--:|--:|--:|---|---|"
ASKED = (("resnet18", "table64x64-w4", 1, 75), ("resnet18", "zcu102-w4a4", 4, 70),
         ("resnet18", "zcu102-w4a4", 8, 70), ("resnet18", "table64x64-w4-slices4", 4, 70),
         ("resnet18", "table64x64-w4-slices4", 8, 70), ("mobilenet-v2", "table32x32-w4-stripes4", 1, 30),
         ("mobilenet-v2", "table32x32-w4-slices4", 4, 33), ("vgg16-convolutions", "table64x64-w4", 1, 85),
         ("yolov3-tiny", "table64x64-w4", 1, 50))
"""(network, engine, batch, % of the lanes that were to be at work at least)."""


def asked_row(network: str, name: str, batch: int, least: float, measured: list) -> str:
    """One line of what was asked; `measured`: the runs of docs/results/resnet18-on-rtl.json."""
    config, plan = config_of(name), plan_of(network, name, batch)
    known = any((run["network"], EngineConfig.from_dict(run["config"]).hash, run["batch"]) == (network, config.hash, batch)
                and run["cycles"] == round(plan["cycles_per_image"] * batch) for run in measured)
    return (f"| {network} | {config.macs_per_cycle:,} | {batch} | {least} | {100 * plan['utilization']:.1f} | `{name}` | "
            f"{'RTL' if known else 'model'} |")


def main(arguments: list) -> None:
    """Fill the tables of the folder's networks.md."""
    folder = Path(arguments[0] if arguments else "docs")
    page = folder / "networks.md"
    lines = [HEAD]
    for entry in ROWS:
        lines.append(row(*entry))
        print(lines[-1], flush=True)
    measured = json.loads((folder / "results" / "resnet18-on-rtl.json").read_text())["runs"]
    asked = [ASKED_HEAD, *(asked_row(*entry, measured) for entry in ASKED)]
    rates = rates_table.table(json.loads((folder / "results" / rates_table.RECORD).read_text())["runs"])
    text = fill(page.read_text(), MARK, "\n".join(lines), page.name)
    text = fill(text, ASKED_MARK, "\n".join(asked), page.name)
    write_whole(page, fill(text, rates_table.MARK, rates, page.name))


if __name__ == "__main__":
    main(sys.argv[1:])
