"""Benchmarks of the train step, the loader, checkpoints, evaluation and inference."""
