"""The command line. Bad input gives one sentence on standard error and exit code 2."""

import argparse
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager
from functools import partial

from esbflow import __version__
from esbflow.commands import (
    bitstream,
    demo,
    doctor,
    estimate,
    export,
    import_onnx,
    inspect,
    report,
    rtl,
    run,
    search,
    study,
    train,
    zoo,
)
from esbflow.commands import compile as compile_command
from esbflow.errors import UserError
from esbflow.suggest import nearest

COMMANDS = (doctor, train, search, study, export, import_onnx, inspect, rtl, bitstream, compile_command, estimate, run,
            report, zoo, demo)


class _Parser(argparse.ArgumentParser):
    """Errors as one sentence that points at --help, with the nearest choice where a name is not known; help on a screen."""

    def __init__(self, **options):
        super().__init__(formatter_class=partial(argparse.HelpFormatter, max_help_position=26), **options)

    def format_help(self):
        # Optional arguments stand in the list below alone: a usage line with all of train's fills a quarter of a screen.
        formatter = self._get_formatter()
        formatter.add_usage(None, [action for action in self._actions if action.required], [], prefix="")
        self.usage = formatter.format_help().strip().replace(self.prog, f"{self.prog} [options]", 1)
        return super().format_help()

    def error(self, message):
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = nearest(wrong[1], re.findall(r"[\w.-]+", wrong[2])) if wrong else ""
        unknown = re.match(r"unrecognized arguments: --([\w-]+)", message)
        if unknown:  # without the dashes, in which all options are alike
            hint = nearest(unknown[1], self._all_options()).replace("mean ", "mean --")
        print(f"{self.prog}: {message}{hint or ';'} see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(2)

    def _all_options(self):
        """Options of the parser and of its commands: an unknown one is found by the outermost."""
        commands = [choice for action in self._actions if isinstance(action, argparse._SubParsersAction)
                    for choice in action.choices.values()]
        own = {option.lstrip("-") for action in self._actions for option in action.option_strings}
        return own.union(*(command._all_options() for command in commands))


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    main_parser = _Parser(prog="esbflow", description="Low-bit networks from PyTorch to a shift-add engine.")
    main_parser.add_argument("--version", action="version", version=f"esbflow {__version__}")
    main_parser.add_argument("--traceback", action="store_true", help="show where in the code bad input was refused")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for module in COMMANDS:
        module.add_parser(commands)
    return main_parser


@contextmanager
def _warnings_in_one_line(command: str):
    """What a graph was hardly meant to be is said on standard error, once a command."""
    from esbflow.graph.doubts import GraphWarning

    with warnings.catch_warnings():
        plain, said = warnings.showwarning, set()

        def show(message, category, *where, **more):
            if not issubclass(category, GraphWarning):
                plain(message, category, *where, **more)
            elif str(message) not in said:
                said.add(str(message))
                print(f"esbflow {command}: warning: {message}", file=sys.stderr)

        warnings.showwarning = show
        warnings.simplefilter("always", GraphWarning)
        yield


def _sentence(error: Exception) -> str | None:
    """What the user is told of bad input or of something that is missing; None for a fault of ours."""
    if isinstance(error, ImportError):
        return f"{error.name or error} is not installed; `esbflow doctor` says what to do"
    # What the system refuses (a missing file, a full disk) has a number, and is the user's to mend.
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, UserError):
        said = error.strerror or os.strerror(error.errno)
        return said if error.filename is None else f"{error.filename}: {said}"
    return str(error) if isinstance(error, UserError) else None


def main(argv: list | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser().print_help()
        return 0
    arguments = parser().parse_args(argv)
    try:
        with _warnings_in_one_line(arguments.command):
            arguments.run(arguments)
    except KeyboardInterrupt as stop:  # a training's says how to go on
        print(f"esbflow {arguments.command}: {stop}" if str(stop) else "interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            print(f"esbflow {arguments.command}: this is a fault of esbflow, not of its input; please report it as an issue "
                  "of esbflow's repository, with the lines below", file=sys.stderr)
            raise
        if arguments.traceback:
            traceback.print_exc()
        print(f"esbflow {arguments.command}: {sentence}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
