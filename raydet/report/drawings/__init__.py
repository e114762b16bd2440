"""Drawn images of a trained detector: its detections on the best and worst images, and the attention of its fusion."""
