"""The table of the compiler's passes in docs/program.md: the list that the compiler carries out.

    python -m esbflow.reports.passes_table docs
"""

import sys
from pathlib import Path

from esbflow.compiler.passes import PASSES
from esbflow.files import write_whole
from esbflow.reports.marks import fill

PAGE = "program.md"
MARK = "table of passes"
HEAD = "| pass | file | what it does |\n|---|---|---|\n"


def table() -> str:
    """A line for each pass, in order; the names of those that try programs are bold."""
    return HEAD + "\n".join(f"| {f'**{step.name}**' if step.tries else step.name} | `{step.file}` | {step.about} |"
                            for step in PASSES)


def main(arguments: list) -> None:
    """Fill the table in the folder that the only argument names."""
    page = Path(arguments[0] if arguments else "docs") / PAGE
    write_whole(page, fill(page.read_text(), MARK, table(), page.name))


if __name__ == "__main__":
    main(sys.argv[1:])
