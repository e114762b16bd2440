"""Where parameters and metrics go."""
