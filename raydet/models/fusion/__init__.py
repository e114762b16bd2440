"""Fusions: the maps of two streams at one stage are merged into one."""
