"""The commands of `esbflow`, one a file."""
