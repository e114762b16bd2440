"""Studies that ship with raydet, one module each; the module's name is what `--space` takes.

A space is a function `study(base: Experiment) -> Study`.
"""
