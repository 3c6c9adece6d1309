"""The command line. Bad input gives one sentence on standard error and exit code 2."""

import argparse
import sys
import warnings
from contextlib import contextmanager

from esbflow.commands import compile as compile_command
from esbflow.commands import demo, doctor, estimate, export, import_onnx, inspect, report, rtl, run, search, train, zoo
from esbflow.commands.common import UserError

COMMANDS = (doctor, train, search, export, import_onnx, inspect, rtl, compile_command, estimate, run, report, zoo, demo)


class _Parser(argparse.ArgumentParser):
    """Errors as one sentence that points at --help."""

    def error(self, message):
        print(f"{self.prog}: {message}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    main_parser = _Parser(prog="esbflow", description="Low-bit networks from PyTorch to a shift-add engine.")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for module in COMMANDS:
        module.add_parser(commands)
    return main_parser


def expected_errors() -> tuple:
    """Exceptions whose text is a sentence for the user; all others are bugs and keep their traceback."""
    from esbflow.compiler.errors import CompileError
    from esbflow.graph.errors import GraphError
    from esbflow.runtime.errors import RuntimeFault

    errors = [UserError, GraphError, CompileError, RuntimeFault]
    # Modules that are not loaded cannot have raised anything.
    for module, name in (("esbflow.training.data", "DataUnavailable"), ("esbsim.toolchain", "BuildError"),
                         ("esbhw.synthesis", "SynthesisError"), ("esbhw.yosys", "YosysError"),
                         ("esbhw.to_verilog", "YosysError")):
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


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


def main(argv: list | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        with _warnings_in_one_line(arguments.command):
            arguments.run(arguments)
    except KeyboardInterrupt as stop:  # a training's says how to go on
        print(f"esbflow {arguments.command}: {stop}" if str(stop) else "interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"esbflow {arguments.command}: {error.name or error} is not installed; `esbflow doctor` says what to do",
              file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        # ValueError is how the libraries refuse bad input; a RuntimeError counts only if it is one of ours.
        if isinstance(error, RuntimeError) and not isinstance(error, expected_errors()):
            raise
        print(f"esbflow {arguments.command}: {error}", file=sys.stderr)
        return 2
    except expected_errors() as error:
        print(f"esbflow {arguments.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
