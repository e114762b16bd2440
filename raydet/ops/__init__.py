"""Tensor functions that know no module, no config and no batch."""
