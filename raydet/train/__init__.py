"""Training. `worker` and `launch` know Ray; nothing else here does."""
