"""What the commands that measure one kind of network share: times on stderr, records as JSON, one sentence for bad input.

    python -m esbflow.studies.text, .saliency, .citations, .methods
"""

import json
import sys
import time
from collections.abc import Callable

from esbflow.errors import UserError


def carry_out(run: Callable, hidden: tuple = ()) -> int:
    """Call `run(say)` and print the record it returns, but for the entries `hidden`.

    `say(text)` writes a line with the seconds since the start to stderr. Returns the exit code: 0, or 2 after one sentence
    if the input was bad.
    """
    began = time.monotonic()

    def shown():
        result = run(lambda text: print(f"[{time.monotonic() - began:6.1f} s] {text}", file=sys.stderr, flush=True))
        print(json.dumps({name: value for name, value in result.items() if name not in hidden}, indent=2))

    return guarded(shown)


def guarded(run: Callable) -> int:
    """Call `run()`. Returns the exit code: 0, or 2 after one sentence if the input was bad."""
    try:
        run()
    except (UserError, ModuleNotFoundError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def steps(say: Callable | None, title: str, every: int = 50) -> Callable:
    """A training loop's `report` that says the loss every so many steps and at the last; silent without `say`."""
    def report(done, total, loss):
        if say and (done % every == 0 or done == total):
            say(f"{title}: step {done}/{total}, loss {loss:.3f}")
    return report
