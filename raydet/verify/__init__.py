"""Proof on the user's own machine and recipe that nothing is lost."""
