"""One reader per format; all of them are a `Source`."""
