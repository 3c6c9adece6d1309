"""esbflow report: report.json of a demo or run to a page that stands alone."""

import json
from pathlib import Path

from esbflow.commands.common import load_graph
from esbflow.errors import UserError, reason


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("report", help="draw a report.json as report.html")
    parser.add_argument("report", help="report.json, as the demo writes it")
    parser.add_argument("model", help="the integer graph that it speaks of, graph.npz")
    parser.add_argument("--trained", metavar="MODEL.pt", help="draw this model's weights before rounding too")
    parser.add_argument("--out", required=True, metavar="FILE.html")
    parser.add_argument("--json", action="store_true", help="print the output's path as JSON")
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbflow.reports.html import write_report

    try:
        content = json.loads(Path(arguments.report).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{arguments.report} is not a report.json ({reason(error)}); make one with `make demo`") from None
    path = write_report(content, load_graph(arguments.model), Path(arguments.out), arguments.trained)
    print(json.dumps({"out": str(path)}) if arguments.json else path)
