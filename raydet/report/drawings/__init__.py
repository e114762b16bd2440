"""What a trained detector sees: its detections, its best and worst pictures, where its fusion looks."""
