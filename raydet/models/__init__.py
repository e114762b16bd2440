"""The detector: two streams, a fusion per stage, a pyramid, a head.

Modules take plain arguments; only `build` reads configs.
"""
