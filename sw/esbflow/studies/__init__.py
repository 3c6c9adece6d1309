"""Studies: one kind of network, trained under several methods and recorded. `esbflow study` carries them out."""
