"""The engine, one block a file."""
