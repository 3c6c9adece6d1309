"""esbflow rtl: generate engine.v and engine.json, and say what they take."""

from pathlib import Path

from esbflow.commands.common import JSON_HELP, add_engine, engine_of, positive, print_table, progress_bar, show
from esbflow.errors import UserError
from esbflow.files import check_folder, write_json


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("rtl", help="generate an engine's Verilog",
                                 description="Writes engine.v, engine.json and the IP core's component.xml into --out.")
    add_engine(parser)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--report", action="store_true",
                        help="synthesize with Yosys; LUTs and the longest path of each block; writes resources.json too")
    parser.add_argument("--flat", action="store_true",
                        help="with --report: synthesize the engine as one module, across blocks (small engines only)")
    parser.add_argument("--target", choices=("xilinx", "generic"), default="xilinx",
                        help="xilinx: LUT6_2, CARRY8 and RAM32M16 of UltraScale(+) (the default); generic: plain Verilog")
    parser.add_argument("--compute-clock", type=positive, metavar="MHZ",
                        help="give the arrays a clock of their own, compute_clk; the buses keep ap_clk")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbhw import generate

    if arguments.flat and not arguments.report:
        raise UserError("--flat says how --report synthesizes; give --report too")
    config = engine_of(arguments)
    paths = generate.write(config, check_folder(arguments.out), arguments.target, arguments.compute_clock)
    content = {"engine": config.name, "hash": f"{config.hash:016x}", "files": [str(path) for path in paths]}
    if arguments.report:
        content["resources"] = _resources(config, arguments)
        path = Path(arguments.out) / "resources.json"
        write_json(path, content["resources"])
        content["files"].append(str(path))
    show(arguments, content, _print)


def _resources(config, arguments) -> dict:
    """Fields of Resources, with `depth`: the longest paths of each block."""
    from esbhw import logic_depth
    from esbhw.generate import TOP, rtlil
    from esbhw.synthesis import add_up, synthesize_rtlil

    with progress_bar(f"synthesize {config.name}", None, arguments.json) as update:
        text = rtlil(config, arguments.target, arguments.compute_clock is not None)
        mapped = synthesize_rtlil(text, TOP, update, flatten=arguments.flat)
    depth = logic_depth.depths(mapped, TOP, text)
    depth = {"whole engine": depth[""]} if arguments.flat else logic_depth.by_block(depth)
    resources = add_up(mapped, TOP, per_block=not arguments.flat).to_dict()
    return resources | {"depth": {name: d.to_dict() for name, d in depth.items()}}


def _print(content: dict) -> None:
    for path in content["files"]:
        print(path)
    resources = content.get("resources")
    if resources:
        columns = ("lut", "lutram", "pairs", "ff", "carry8", "bram36", "dsp", "latches")
        rows = [(name, *(_number(block[c]) for c in columns)) for name, block in resources.get("blocks", {}).items()]
        rows.append(("whole engine", *(_number(resources[c]) for c in columns)))
        print_table(f"{content['engine']}: Yosys synth_xilinx -family xcup, not placed or routed; pairs: LUTs that could "
                    "share a LUT6_2, estimated", ("block", *columns), rows)
        print("longest paths that end in each block, from register to register:")
        for name, depth in resources["depth"].items():
            print(f"- {name}: {depth['longest']}")
            if depth["longest_carry"] != depth["longest"]:
                print(f"  most carry bits: {depth['longest_carry']}")


def _number(value) -> str:
    return f"{value:g}"
