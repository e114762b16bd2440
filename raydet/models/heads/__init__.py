"""Heads: a pyramid in, losses or boxes out."""
