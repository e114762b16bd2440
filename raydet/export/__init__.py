"""What a trained run finds in images, for other programs and for people."""
