"""esbflow rtl: generate engine.v and engine.json, and say what they take."""

from pathlib import Path

from esbflow.commands.common import JSON_HELP, add_engine, engine_of, print_table, resources_of, show
from esbflow.files import write_json


def add_parser(commands) -> None:
    parser = commands.add_parser("rtl", help="generate an engine's Verilog",
                                 description="Writes engine.v and engine.json into --out.")
    add_engine(parser)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--report", action="store_true",
                        help="synthesize with Yosys and list LUTs of each block; writes resources.json too")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:

    from esbhw import generate

    config = engine_of(arguments)
    paths = generate.write(config, Path(arguments.out))
    content = {"engine": config.name, "hash": f"{config.hash:016x}", "files": [str(path) for path in paths]}
    if arguments.report:
        resources = resources_of(config, arguments.json)
        content["resources"] = resources.to_dict()
        path = Path(arguments.out) / "resources.json"
        write_json(path, content["resources"])
        content["files"].append(str(path))
    show(arguments, content, _print)


def _print(content: dict) -> None:
    for path in content["files"]:
        print(path)
    resources = content.get("resources")
    if resources:
        columns = ("lut", "ff", "carry8", "bram36", "dsp", "latches")
        rows = [(name, *(_number(block[c]) for c in columns)) for name, block in resources["blocks"].items()]
        rows.append(("whole engine", *(_number(resources[c]) for c in columns)))
        print_table(f"{content['engine']}: Yosys synth_xilinx -family xcup, not placed or routed", ("block", *columns), rows)


def _number(value) -> str:
    return f"{value:g}"
