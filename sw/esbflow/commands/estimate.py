"""esbflow estimate: cycles, resources and rates without running anything."""

from esbflow.commands.common import (
    JSON_HELP,
    above_zero,
    add_engine,
    engine_of,
    load_graph,
    positive,
    print_table,
    resources_of,
    show,
)


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("estimate", help="cycles per layer, LUT/FF/BRAM, GOPS, frames/s",
                                 description="Cycles are exact for ideal memory, or for memory of a stated bandwidth; "
                                             "resources come from a model fitted to open synthesis; the clock is the "
                                             "configuration's statement.")
    parser.add_argument("model", help="an integer graph, graph.npz")
    add_engine(parser)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--latency", type=positive, default=40, help="of memory, in cycles (default 40)")
    parser.add_argument("--bandwidth", type=above_zero, metavar="BYTES",
                        help="what all ports of memory together move a cycle (default: a beat each; 45.5 is a ZCU102's DDR)")
    parser.add_argument("--synthesis", action="store_true", help="resources by synthesis, which takes minutes once")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbflow.area import area
    from esbflow.reports.estimate import estimate

    config = engine_of(arguments)
    graph = load_graph(arguments.model)
    resources = resources_of(config, arguments.json) if arguments.synthesis else area(config)
    show(arguments, estimate(graph, config, arguments.batch, arguments.latency, resources, bandwidth=arguments.bandwidth),
         print_estimate)


def print_estimate(content: dict) -> None:
    """Print the fields of `esbflow estimate --json` as a table and lines."""
    from esbflow.reports.lost import largest

    rows = [(layer["name"], layer["op"], f"{layer['macs']:,}", f"{layer['cycles']:,.0f}",
             f"{100 * layer['utilization']:.1f}", largest(layer["lost"], layer["cycles"])) for layer in content["layers"]]
    print_table(f"{content['model']} on {content['engine']}, batch {content['batch']}, per image",
                ("layer", "operator", "MACs", "cycles", "use %", "lost to, %"), rows)
    print(f"{content['cycles_per_image']:,.0f} cycles and {content['macs_per_image']:,} MACs an image, "
          f"{100 * content['utilization']:.1f} % of the array; lost to, %: "
          f"{largest(content['lost'], content['cycles_per_image'])}")
    print(f"input: {content['input']}")
    print(f"at {content['clock_mhz']} MHz (stated, not routed): {content['frames_per_second']:,.0f} frames/s, "
          f"{content['gops']:.1f} of {content['gops_peak']:.1f} GOPS")
    if "lut" in content:
        how = (f"model, {100 * content['area_error']:.0f} % off at most on engines it had not seen"
               if "area_error" in content else "Yosys")
        print(f"{content['lut']:,} LUT, {content['ff']:,} FF, {content['bram']:g} BRAM36, {content['dsp']} DSP ({how}): "
              f"{content['gops_per_klut']:.2f} GOPS/kLUT useful, {content['gops_peak_per_klut']:.2f} at peak")
