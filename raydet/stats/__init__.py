"""How far a metric can be trusted: bootstrap, comparison of runs, correction for multiple comparisons."""
