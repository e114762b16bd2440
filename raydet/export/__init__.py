"""Detections of a trained run as COCO results and as drawn images."""
