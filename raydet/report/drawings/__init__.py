"""What a trained detector sees: its detections, its best and worst images, where its fusion looks."""
