"""What a trained run finds in pictures, for other programs and for people."""
