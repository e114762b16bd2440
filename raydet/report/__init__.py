"""What studies and runs have to say, for people."""
