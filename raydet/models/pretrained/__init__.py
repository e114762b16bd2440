"""Pretrained weights: read a file, translate its names, load both streams, report what does not fit."""
