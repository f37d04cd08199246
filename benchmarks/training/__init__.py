"""The training recipes of the microworld's checkpoints: `python -m benchmarks.training NAME`."""
