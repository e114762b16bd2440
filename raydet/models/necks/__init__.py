"""Necks: the backbone's maps in, a pyramid of equal width out."""
