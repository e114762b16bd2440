"""From the backbone's maps to a pyramid of equal width."""
