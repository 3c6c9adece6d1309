"""Named passes from the integer graph to an engine program, and the cycle model."""
