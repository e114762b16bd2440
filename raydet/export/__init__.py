"""Predictions of a trained run as files: COCO results, masks, drawn images."""
