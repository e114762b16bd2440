"""Tensor functions that depend on no module, config or batch."""
