"""Measurements: what a train step costs, and against what."""
