"""Networks that the engine cannot run alone: programs, with what the host computes between them."""
