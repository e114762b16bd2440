"""Published weights as a start: read the file, understand its names, fill both streams, say what is left."""
