"""Studies that ship with raydet, one module each; `--space` takes the module's name.

A space is a function `study(base: Experiment) -> Study`.
"""
