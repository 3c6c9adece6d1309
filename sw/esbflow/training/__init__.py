"""Image data sets, recipes, the training loop, and quantization without training."""
