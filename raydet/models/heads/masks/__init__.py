"""Heads for masks: one module per decoder, and what all of them share in `base` and `layers`."""
