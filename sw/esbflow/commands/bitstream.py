"""esbflow bitstream: from an engine to a bitstream for a board."""

from pathlib import Path

from esbflow.commands.common import JSON_HELP, add_engine, engine_of, positive, print_table, say, show
from esbflow.errors import BadValue
from esbflow.files import check_folder, check_writable, write_json


def add_parser(commands) -> None:
    """Add the command and its options."""
    from esbhw.boards import BOARDS  # facts only

    parser = commands.add_parser("bitstream", help="build a bitstream for a board",
                                 description="Writes what the board's tools need, runs them, and puts .bit, .hwh and .json "
                                             "(for a Gowin part .fs and .json) of one name into OUT/BOARD/ENGINE.")
    parser.add_argument("--board", required=True, metavar="NAME", help=", ".join(BOARDS))
    add_engine(parser)
    parser.add_argument("--out", default="bitstreams", metavar="DIR", help="where results go (default bitstreams)")
    parser.add_argument("--work", metavar="DIR", help="where the tools work (default build/bitstream/BOARD/ENGINE)")
    parser.add_argument("--clock-mhz", type=positive, metavar="MHZ", help="fabric clock (default: the board's)")
    parser.add_argument("--compute-clock", type=positive, metavar="MHZ",
                        help="a clock of the arrays' own, beside that of the buses (boards with a processor)")
    parser.add_argument("--dry-run", action="store_true", help="write every file, and run nothing")
    parser.add_argument("--record", metavar="FILE.json", help="write the figures there too, for docs/results")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbhw import bitstream
    from esbhw.boards import board

    chosen, config = board(arguments.board), engine_of(arguments)
    work = Path(arguments.work or Path("build") / "bitstream" / chosen.name / config.name)
    if chosen.flow != "vivado" and arguments.clock_mhz not in (None, chosen.clock_mhz):
        raise BadValue(f"{chosen.title} runs at its oscillator's {chosen.clock_mhz} MHz; leave --clock-mhz out")
    tell = (lambda _: None) if arguments.json else say
    if arguments.dry_run:
        _, paths = bitstream.prepare(config, chosen, work, arguments.clock_mhz, arguments.compute_clock, tell)
        content = {"board": chosen.name, "engine": config.name, "files": [str(path) for path in paths]}
        show(arguments, content, lambda c: print("\n".join(c["files"])))
        return
    tell = (lambda _: None) if arguments.json else say
    if arguments.record:
        check_writable(arguments.record)
    figures = bitstream.build(config, chosen, work, check_folder(arguments.out), arguments.clock_mhz, tell,
                              arguments.compute_clock)
    content = {"board": chosen.name, "engine": config.name, **figures}
    if arguments.record:
        command = f"make bitstream BOARD={chosen.name} ENGINE={arguments.engine}"
        write_json(arguments.record, {**content, "board": chosen.title, "device": chosen.part, "command": command})
    show(arguments, content, lambda c: print_table(
        f"{config.name} on {chosen.title}", ("figure", "value"),
        [(name, value) for name, value in c.items() if not isinstance(value, list)]))
