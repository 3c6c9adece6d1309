"""`python -m esbflow`."""

from esbflow.cli import main

raise SystemExit(main())
