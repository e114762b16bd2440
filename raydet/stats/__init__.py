"""How far a metric can be trusted: bootstrap, comparison of runs, corrections for many tests."""
