"""Losses of logits against masks, one module per loss; `build.py` maps configs to them."""
