"""Recordings of event cameras and their boxes: our own readers, which trust no file."""
