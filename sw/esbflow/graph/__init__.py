"""The integer graph: operators, reference executor, files."""
