"""python -m esbflow.zoo NAME FOLDER RECORD: take a trained graph into the zoo."""

import sys
from pathlib import Path

from esbflow.zoo import add

if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    add(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
